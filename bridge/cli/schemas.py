"""
`bridge schemas`: generate `schemas/` from the models, or list the files that differ.

The files are never edited by hand. A test fails if the committed files differ from the
generated ones.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import typer
from pydantic import BaseModel

from bridge.core.contracts import messages, windows
from bridge.core.contracts.asyncapi import asyncapi_document
from bridge.core.contracts.json_schema import schema_body
from bridge.core.contracts.operator import OPERATIONS
from bridge.core.contracts.operator.openapi import openapi_document
from bridge.enums import ExitCode

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_FILES: Final[Mapping[str, type[BaseModel]]] = {
    "message": messages.PublishedMessage,
    "publish-request": messages.PublishRequest,
    "publish-accepted": messages.PublishAccepted,
    "problem": messages.Problem,
    "dead-letter-headers": messages.DeadLetterHeaders,
    "token-claims": windows.TokenClaims,
    "connect-auth": windows.ConnectAuth,
    "sync": windows.Sync,
    "expiring": windows.Expiring,
    "closing": windows.ClosingNotice,
    "connect-error": windows.ConnectErrorData,
    "event-reply": windows.EventReply,
}


def schemas(
    check: bool = typer.Option(
        False, "--check", help="Write nothing; list files that differ and exit with 1."
    ),
    directory: Path = typer.Option(
        Path("schemas"), "--dir", help="The directory of the files."
    ),
) -> None:
    """
    Generate the JSON Schemas, the AsyncAPI and the OpenAPI document from the models.

    Examples:

        bridge schemas

        bridge schemas --check

    """
    files = render_schemas()
    if check:
        different = differing_files(files, directory)
        for name in different:
            typer.echo(name)
        if different:
            typer.echo(f"{len(different)} of {len(files)} files differ", err=True)
            raise typer.Exit(ExitCode.FAILED)
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    typer.echo(f"wrote {len(files)} files to {directory}", err=True)


def differing_files(files: Mapping[str, str], directory: Path) -> list[str]:
    """Return the names of `files` that are missing in `directory` or differ there."""
    return [
        name
        for name, text in files.items()
        if not (directory / name).is_file()
        or (directory / name).read_bytes() != text.encode()
    ]


def render_schemas() -> dict[str, str]:
    """Return the text of each file of `schemas/` by name; it is deterministic."""
    bodies = {name: schema_body(model) for name, model in _FILES.items()}
    files = {
        f"{name}.schema.json": _render_json(
            {"$schema": _DIALECT, "$id": f"urn:bridge:schema:{name}", **body}
        )
        for name, body in bodies.items()
    }
    files["asyncapi.yaml"] = render_yaml(asyncapi_document(bodies))
    files["operator.openapi.json"] = _render_json(openapi_document(OPERATIONS))
    return files


# --- rendering


def _render_json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n"


# Strings that need no quotes, in YAML 1.1 and 1.2.
_PLAIN: Final = re.compile(r"[$A-Za-z_/][$A-Za-z0-9_./-]*")
# Text of several lines that a block scalar preserves exactly.
_BLOCK: Final = re.compile(r"\S[ -~\n]*\n[ -~\n]*\S")
_NOT_STRINGS: Final = frozenset(
    {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
)


def render_yaml(value: Mapping[str, Any]) -> str:
    """
    Return a tree of JSON values, with integers only, as YAML in block style.

    YAML is a superset of JSON, so scalars and empty containers are written as JSON. A YAML
    library would be a runtime dependency of the bridge for this command alone.
    """
    return "\n".join(_yaml_lines(value)) + "\n"


def _yaml_lines(value: object) -> Iterator[str]:
    """Yield the lines of a mapping or sequence, which must not be empty."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _yaml_entry(f"{_yaml_scalar(key)}:", item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _yaml_entry("-", item)


def _yaml_entry(head: str, item: object) -> Iterator[str]:
    if isinstance(item, Mapping | list | tuple) and item:
        lines = _yaml_lines(item)
    elif isinstance(item, str) and _BLOCK.fullmatch(item):
        head += " |-"
        lines = iter(item.split("\n"))
    else:
        yield f"{head} {_yaml_scalar(item)}"
        return
    if head == "-":
        yield f"- {next(lines)}"
    else:
        yield head
    for line in lines:
        yield f"  {line}" if line else ""


def _yaml_scalar(item: object) -> str:
    if (
        isinstance(item, str)
        and _PLAIN.fullmatch(item)
        and item.lower() not in _NOT_STRINGS
    ):
        return item
    return orjson.dumps(item).decode()
