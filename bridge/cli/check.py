"""`bridge check`: check everything that `bridge run` needs."""

import asyncio
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import orjson
import typer

from bridge.cli.options import LoadSettings, with_settings
from bridge.doctor.results import CheckResult
from bridge.doctor.run import run_checks
from bridge.enums import ExitCode
from bridge.logging import configure_logs
from bridge.settings.model import Settings


@with_settings
def check(
    load: LoadSettings,
    *,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per result.")
    ] = False,
) -> None:
    """
    Check everything that `bridge run` needs, and change nothing.

    Each line is ok, warn, fail or skip; `fix:` below it names the command or setting that
    resolves the problem. `warn` works but needs attention, `skip` could not be checked;
    neither changes the exit status, which is: 0 no check failed, 1 a check failed, 2 the
    settings or schemas are wrong, 3 a peer cannot be reached. The broker logs a channel
    error for each queue, because permissions are tested with operations that it refuses.

    Examples:

        bridge check

        bridge check --json | jq -r 'select(.status == "fail") | .fix'

        bridge check --config /etc/bridge.toml

    """
    settings = load()
    configure_logs(level="critical", log_format=settings.log_format)
    raise typer.Exit(asyncio.run(_check(settings, _show_json if json else _show)))


async def _check(settings: Settings, show: Callable[[CheckResult], None]) -> int:
    code = ExitCode.DONE
    async for result in run_checks(settings):
        try:
            show(result)
        except BrokenPipeError:
            # `bridge check | head`: the checks finish, and close what they have opened.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = max(code, result.exit_code)
    return code


def _show(result: CheckResult) -> None:
    line = f"{result.status:<4} {result.subject}: {result.text}"
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, subsequent_indent=" " * 5)
    typer.echo(line)
    if result.fix:  # never wrapped, so that it can be copied
        typer.echo(f"     fix: {result.fix}")


def _show_json(result: CheckResult) -> None:
    line = asdict(result) | {"fix": result.fix or None}
    typer.echo(orjson.dumps(line).decode())
