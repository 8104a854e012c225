"""
The folder BRIDGE_SCHEMAS: its files are read here, what they mean is told in the core.

Names that begin with a dot are left alone, and with them what editors leave and how
Kubernetes mounts a ConfigMap; so is all that does not end in `.json`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from bridge.core.event_schemas import EventSchemas
from bridge.core.schema_set import SUFFIX, compile_schemas
from bridge.errors import ConfigError

log = structlog.get_logger(__name__)

_FILE_MAX_BYTES: Final = 1 << 20


def load_schemas(folder: str | None, *, unknown: str) -> EventSchemas | None:
    """
    Read the folder and compile what is in it.

    Blocks on the disk: not for the loop.

    Args:
        folder: As in BRIDGE_SCHEMAS; `None` gives `None`, and nothing is checked.
        unknown: As in BRIDGE_SCHEMAS_UNKNOWN: `pass` or `dead`.

    Raises:
        ConfigError: With every problem of every file.

    """
    if folder is None:
        return None
    root = Path(folder)
    files: dict[str, bytes] = {}
    problems: list[str] = []
    try:
        for path in sorted(_schema_files(root)):
            content = _read(path)
            name = path.relative_to(root).as_posix()
            if isinstance(content, str):
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
    # Folders first, links not followed: one to a parent would never end.
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _schema_files(Path(entry.path))
        elif entry.name.endswith(SUFFIX):
            yield Path(entry.path)


def _read(path: Path) -> bytes | str:
    """Return what is in the file, or what is wrong with it."""
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return "is not a file"
        if path.stat().st_size > _FILE_MAX_BYTES:
            return f"is larger than {_FILE_MAX_BYTES} bytes"
        return path.read_bytes()
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
