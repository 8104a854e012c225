"""`bridge check`: is everything there that `bridge run` needs, and if not, what to do."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Final

import orjson
import typer

from bridge.cli.options import LoadSettings, with_settings
from bridge.doctor.checks import examine
from bridge.doctor.results import Finding, Verdict
from bridge.enums import ExitCode
from bridge.logging import configure_logs
from bridge.settings.model import Settings

_MARKS: Final = {
    Verdict.OK: "ok ",
    Verdict.NOTE: "!! ",
    Verdict.UNKNOWN: "?? ",
    Verdict.WRONG: "NO ",
}


@with_settings
def check(
    load: LoadSettings,
    *,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line of the examination.")
    ] = False,
) -> None:
    """
    Look at all that `bridge run` needs and change nothing.

    Each line says ok, or what is wrong and the command that mends it. `!!` works and is
    worth knowing, `??` could not be looked at; neither changes the exit status, which is:
    0 all is well, 1 something is not as it must be, 2 the settings or schemas are wrong,
    3 a peer cannot be reached. The broker's log gets a line about a channel for each
    queue: that is how permissions are asked for.

    Examples:

        bridge check

        bridge check --json | jq -r 'select(.verdict == "wrong") | .mend'

        bridge check --config /etc/bridge.toml

    """
    settings = load()
    configure_logs(level="critical", log_format=settings.log_format)
    raise typer.Exit(asyncio.run(_check(settings, _show_json if json else _show)))


async def _check(settings: Settings, show: Callable[[Finding], None]) -> int:
    code = ExitCode.DONE
    async for finding in examine(settings):
        show(finding)
        code = max(code, finding.exit_code)
    return code


def _show(finding: Finding) -> None:
    typer.echo(f"{_MARKS[finding.verdict]} {finding.subject}: {finding.text}")
    if finding.mend:
        typer.echo(f"    mend: {finding.mend}")


def _show_json(finding: Finding) -> None:
    line = {
        "subject": finding.subject,
        "verdict": finding.verdict,
        "text": finding.text,
        "mend": finding.mend or None,
        "exit_code": finding.exit_code,
    }
    typer.echo(orjson.dumps(line).decode())
