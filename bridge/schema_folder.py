"""
Reads the folder BRIDGE_SCHEMAS; `core/schema_compiler.py` interprets its files.

Names that begin with a dot are skipped: editors leave such files behind, and Kubernetes
mounts a ConfigMap with them. Files that do not end in `.json` are skipped, too.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from bridge.core.event_schemas import EventSchemas
from bridge.core.schema_compiler import SUFFIX, compile_schemas
from bridge.errors import ConfigError
from bridge.settings.files import read_file

log = structlog.get_logger(__name__)


def load_schemas(folder: str | None, *, unknown: str) -> EventSchemas | None:
    """
    Read the folder and compile its schemas. Blocks on the disk: do not call in the loop.

    Args:
        folder: The value of BRIDGE_SCHEMAS.
        unknown: The value of BRIDGE_SCHEMAS_UNKNOWN: `pass` or `dead`.

    Returns:
        ``None`` if `folder` is ``None``: no data is checked.

    Raises:
        ConfigError: With all problems of all files.

    """
    if folder is None:
        return None
    root = Path(folder)
    files: dict[str, bytes] = {}
    problems: list[str] = []
    try:
        for path in sorted(_schema_files(root)):
            content = read_file(path)
            name = path.relative_to(root).as_posix()
            if not _is_unicode(name):
                shown = os.fsencode(name).decode(errors="backslashreplace")
                problems.append(f"{shown}: the name is not UTF-8")
            elif isinstance(content, str):
                problems.append(f"{name}: {content}")
            else:
                files[name] = content
    except OSError as exc:
        problems.append(f"cannot be read: {exc.strerror}")
    compiled = compile_schemas(files, refuses_unknown=unknown == "dead")
    if isinstance(compiled, list):
        problems += compiled
    if problems or isinstance(compiled, list):
        raise ConfigError([f"BRIDGE_SCHEMAS: {folder}: {text}" for text in problems])
    log.info("schemas.loaded", folder=folder, events=len(compiled.schemas))
    return compiled


def _schema_files(folder: Path) -> Iterator[Path]:
    # Links to folders are not followed: a link to a parent would never end.
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _schema_files(Path(entry.path))
        elif entry.name.endswith(SUFFIX):
            yield Path(entry.path)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python decodes other bytes of a name to surrogates
        return False
    return True
