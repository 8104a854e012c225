"""`bridge inbox migrate`: migrate from one bridge with a file to a fleet with a shared store."""

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Final

import orjson
import typer

from bridge.cli.options import ConfigFile
from bridge.cli.tables import print_note
from bridge.enums import ExitCode
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.migration.migrate import MigrationResult, OnProgress, migrate
from bridge.inbox.migration.model import MigrationTarget, MigrationTotals
from bridge.inbox.sqlite.migration_source import SqliteSource
from bridge.logging import configure_logs
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.wiring import migration_target_of, retention

_INTERRUPTED: Final = 130  # the shell's convention: 128 plus the number of SIGINT
_PROGRESS_INTERVAL_S: Final = 2.0


def migrate_inboxes(
    origin: Annotated[
        str,
        typer.Option("--from", help="The store to copy from, as sqlite:PATH."),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="The store to copy into, in the format of BRIDGE_INBOX. The default is "
            "BRIDGE_INBOX itself; prefer it if the address holds a password, because "
            "other users can read a command line.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Copy nothing; report whether it is possible."),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, not a sentence.")
    ] = False,
    config_file: ConfigFile = None,
) -> None:
    """
    Copy all inboxes from a file into the store of a fleet, with marks and ids.

    Stop the bridge that uses the file first; RabbitMQ keeps what is published meanwhile.
    Positions that clients hold stay valid, and the file is not changed. Bridges that are
    started on the new store too early wait until the copy is complete. If the command is
    interrupted, by Ctrl-C or otherwise, run it again to continue. It copies messages,
    deadlines, delivered marks and the ids within BRIDGE_DEDUPE_WINDOW, and compares all
    inboxes at the end. Exit status: 0 copied, 1 refused or failed, 2 wrong use, 3 the new
    store cannot be reached or used now.

    Examples:

        bridge inbox migrate --from sqlite:inbox.sqlite3 --to redis://store:6379/0

        bridge inbox migrate --from sqlite:inbox.sqlite3 --dry-run

    """
    # Only the stores matter here; this machine may have no token secrets.
    settings = load_settings({"inbox": to}, config_file=config_file, is_complete=False)
    configure_logs(level="error", log_format=settings.log_format)
    source = _source(origin, settings)
    target = migration_target_of(settings)
    try:
        result = asyncio.run(_migrate(source, target, is_dry_run=dry_run))
    except KeyboardInterrupt:
        print_note("stopped: run the same command to continue")
        raise typer.Exit(_INTERRUPTED) from None
    except StoreUnavailableError as exc:
        if exc.store != target.description:
            raise
        print_note(f"bridge: {exc}; run the same command to continue")
        raise typer.Exit(ExitCode.UNREACHABLE) from exc
    if json:
        facts = {
            "epoch": result.epoch,
            "there": asdict(result.source),
            "put": asdict(result.copied),
            "is_resumed": result.is_resumed,
            "is_done": result.is_done,
            "from": source.description,
            "to": target.description,
            "dry_run": dry_run,
        }
        typer.echo(orjson.dumps(facts).decode())
    else:
        route = f"from {source.description} to {target.description}"
        typer.echo(_summary(result, route, is_dry_run=dry_run))
    raise typer.Exit(ExitCode.DONE)


async def _migrate(
    source: SqliteSource, target: MigrationTarget, *, is_dry_run: bool
) -> MigrationResult:
    try:
        return await migrate(
            source, target, is_dry_run=is_dry_run, on_progress=_progress_printer()
        )
    finally:
        await target.close()


def _source(name: str, settings: Settings) -> SqliteSource:
    kind, _, path = name.partition(":")
    if kind != "sqlite" or not path:
        raise ConfigError((f"--from: {name!r} is not a file, expected sqlite:PATH",))
    return SqliteSource(path, dedupe_s=retention(settings).dedupe_s)


def _progress_printer() -> OnProgress:
    """Return a function that prints the progress, at most every other second."""
    printed_s = time.monotonic()

    def print_progress(
        activity: str, done: MigrationTotals, totals: MigrationTotals
    ) -> None:
        nonlocal printed_s
        now_s = time.monotonic()
        if now_s - printed_s >= _PROGRESS_INTERVAL_S:
            printed_s = now_s
            print_note(
                f"{activity}: {done.messages:,} of {totals.messages:,} messages, "
                f"{done.users:,} of {totals.users:,} inboxes"
            )

    return print_progress


def _summary(result: MigrationResult, route: str, *, is_dry_run: bool) -> str:
    totals = result.source
    amount = (
        f"{totals.messages:,} messages and {totals.ids:,} ids of {totals.users:,} users"
    )
    if result.is_done and not result.copied.users:
        return f"{amount} had already been copied {route}; nothing was left to do"
    if is_dry_run:
        if result.is_resumed:
            return f"the copy of {amount} {route} would be resumed"
        return f"{amount} would be copied {route}"
    return f"{amount} copied {route}, and compared"
