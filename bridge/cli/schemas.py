"""
`bridge schemas`: generate `schemas/` from the models, or list the files that differ.

These files are never edited by hand: a test fails if the committed files differ from the
generated ones. `schemas/asyncapi.yaml` is written by hand and refers to them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson
import typer
from pydantic import BaseModel

from bridge.core.contracts import control, events, messages, windows
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
    "page-request": messages.PageRequest,
    "worker-reply": messages.WorkerReply,
    "request-answer": windows.RequestAnswer,
    "message-event": events.MessageEvent,
    "presence-event": events.PresenceEvent,
    "kick": control.KickCommand,
    "revoke": control.RevokeCommand,
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
    Generate the JSON Schemas and the OpenAPI document from the models.

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
    files = {
        f"{name}.schema.json": _render_json(
            {
                "$schema": _DIALECT,
                "$id": f"urn:bridge:schema:{name}",
                **schema_body(model),
            }
        )
        for name, model in _FILES.items()
    }
    files["operator.openapi.json"] = _render_json(openapi_document(OPERATIONS))
    return files


def _render_json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n"
