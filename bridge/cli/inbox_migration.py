"""`bridge inbox carry`: from a single bridge with a file to a fleet with one shared store."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Final

import orjson
import typer

from bridge.cli.options import ConfigFile
from bridge.cli.tables import say
from bridge.enums import ExitCode
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.migration.migrate import Outcome, carry
from bridge.inbox.migration.model import Amount, Source, Target
from bridge.inbox.sqlite.migration_source import SqliteSource
from bridge.logging import configure_logs
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.wiring import migration_target_of, retention

_INTERRUPTED: Final = 130  # as a shell has it: 128 and the number of SIGINT
_TELL_EACH_S: Final = 2.0


def carry_inboxes(
    origin: Annotated[
        str,
        typer.Option("--from", help="The store to carry, as sqlite:PATH."),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Where to, as BRIDGE_INBOX names it. Without it: BRIDGE_INBOX, which is "
            "better where the address holds a password: others can read a command line.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Carry nothing, say whether it could be done."),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of a sentence.")
    ] = False,
    config_file: ConfigFile = None,
) -> None:
    """
    Carry all inboxes from a file into the store of a fleet, with marks and ids.

    Stop the bridge that has the file first; the broker keeps what is published meanwhile.
    Positions that pages hold stay valid. The file stays as it is. Bridges wait for the end
    if they are started on the new store too early. What was interrupted, by Ctrl-C or in
    any other way, is finished by the same command. Messages, ids that are younger than
    BRIDGE_DEDUPE_WINDOW, delivered marks and deadlines come along; in the end all inboxes
    are compared. Exit status: 0 carried, 1 refused or failed, 2 wrong use, 3 the new store
    cannot be reached or used now.

    Examples:

        bridge inbox carry --from sqlite:/var/lib/bridge/inbox.sqlite3 --to redis://store:6379/0

        BRIDGE_INBOX=rediss://:secret@store:6380 bridge inbox carry --from sqlite:inbox.sqlite3 --dry-run

    """
    # Only the stores matter here; this machine may have no token secrets.
    settings = load_settings(
        {"auth": "open", "host": "127.0.0.1", "inbox": to},
        config_file=str(config_file) if config_file else None,
    )
    configure_logs(level="error", log_format=settings.log_format)
    source = _source(origin, settings)
    target = migration_target_of(settings)
    try:
        outcome = asyncio.run(_carry(source, target, is_dry_run=dry_run))
    except KeyboardInterrupt:
        say("stopped: the same command goes on from here")
        raise typer.Exit(_INTERRUPTED) from None
    except StoreUnavailableError as exc:
        if exc.store != target.description:
            raise
        say(f"bridge: {exc}; the same command goes on from here")
        raise typer.Exit(ExitCode.UNREACHABLE) from exc
    _print(outcome, source, target, dry_run=dry_run, as_json=json)
    raise typer.Exit(ExitCode.DONE)


async def _carry(source: Source, target: Target, *, is_dry_run: bool) -> Outcome:
    try:
        return await carry(source, target, is_dry_run=is_dry_run, tell=_progress())
    finally:
        await target.close()


def _source(name: str, settings: Settings) -> SqliteSource:
    kind, _, path = name.partition(":")
    if kind != "sqlite" or not path:
        raise ConfigError((f"--from: {name!r} is no file, expected sqlite:PATH",))
    return SqliteSource(path, dedupe_s=retention(settings).dedupe_s)


def _progress() -> Callable[[str, Amount, Amount], None]:
    """Return what says how far it is, every other second."""
    said_s = time.monotonic()

    def tell(doing: str, done: Amount, there: Amount) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s >= _TELL_EACH_S:
            said_s = now_s
            say(
                f"{doing}: {done.messages:,} of {there.messages:,} messages, "
                f"{done.users:,} of {there.users:,} inboxes"
            )

    return tell


def _print(
    outcome: Outcome, source: Source, target: Target, *, dry_run: bool, as_json: bool
) -> None:
    if as_json:
        facts = asdict(outcome) | {
            "from": source.description,
            "to": target.description,
            "dry_run": dry_run,
        }
        typer.echo(orjson.dumps(facts).decode())
        return
    there = outcome.there
    amount = (
        f"{there.messages:,} messages and {there.ids:,} ids of {there.users:,} users"
    )
    way = f"from {source.description} to {target.description}"
    if outcome.is_done and not outcome.put.users:
        typer.echo(f"{amount} were carried {way} before; nothing was left to do")
    elif dry_run:
        how = "would be carried on" if outcome.is_resumed else "would be carried"
        typer.echo(f"{amount} {how} {way}")
    else:
        typer.echo(f"{amount} carried {way}, and compared")
