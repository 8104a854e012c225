"""
`bridge schemas`: writes `schemas/` anew from the models, or tells what differs.

The files are the contract for machines. They are made, never edited; a test fails when
what is committed is not what would be made.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import typer
from pydantic import BaseModel

from bridge.core import contracts
from bridge.core.contracts.asyncapi import asyncapi_document
from bridge.core.contracts.json_schema import schema_body
from bridge.core.contracts.operator import OPERATIONS
from bridge.core.contracts.operator.openapi import openapi_document
from bridge.enums import ExitCode

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_FILES: Final[Mapping[str, type[BaseModel]]] = {
    "message": contracts.PublishedMessage,
    "publish-request": contracts.PublishRequest,
    "publish-accepted": contracts.PublishAccepted,
    "problem": contracts.Problem,
    "dead-letter-headers": contracts.DeadLetterHeaders,
    "token-claims": contracts.TokenClaims,
    "connect-auth": contracts.ConnectAuth,
    "sync": contracts.Sync,
    "expiring": contracts.Expiring,
    "closing": contracts.ClosingNotice,
    "connect-error": contracts.ConnectErrorData,
    "event-reply": contracts.EventReply,
}


def schemas(
    check: bool = typer.Option(
        False, "--check", help="Write nothing; list what differs and exit with 1."
    ),
    directory: Path = typer.Option(
        Path("schemas"), "--dir", help="Where the files are."
    ),
) -> None:
    """
    Write the JSON Schemas, the AsyncAPI and the OpenAPI document, made from the models.

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
    """Return the names of those `files` that are missing in `directory` or not the same."""
    return [
        name
        for name, text in files.items()
        if not (directory / name).is_file()
        or (directory / name).read_bytes() != text.encode()
    ]


def render_schemas() -> dict[str, str]:
    """Return each file of `schemas/` by its name; the same text at each call."""
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


# --- text ---------------------------------------------------------------------------------


def _render_json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n"


# What needs no quotes in YAML, neither by 1.1 nor by 1.2.
_PLAIN: Final = re.compile(r"[$A-Za-z_/][$A-Za-z0-9_./-]*")
# Text of several lines that a block brings back as it was.
_BLOCK: Final = re.compile(r"\S[ -~\n]*\n[ -~\n]*\S")
_NOT_STRINGS: Final = frozenset(
    {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
)


def render_yaml(value: Mapping[str, Any]) -> str:
    """
    Return `value`, a tree of JSON whose numbers are whole, as YAML in block style.

    YAML is a superset of JSON: what is not a mapping, a sequence or a text of several
    lines is written as JSON. A library for that would be a dependency of production.
    """
    return "\n".join(_yaml_lines(value)) + "\n"


def _yaml_lines(value: object) -> Iterator[str]:
    """Yield the lines of a mapping or sequence that is not empty."""
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
