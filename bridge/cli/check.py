"""`bridge check`: is everything there that `bridge run` needs, and if not, what to do."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import typer
from yarl import URL

from bridge.broker.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    open_connection,
)
from bridge.broker.frame_reader import FrameReader
from bridge.broker.topology import State, compare, topology
from bridge.cli.options import LoadSettings, with_settings
from bridge.errors import (
    BrokerUnavailableError,
    ConfigError,
    StoreInUseError,
    StoreUnavailableError,
)
from bridge.logs import configure_logs
from bridge.names import BrokerNames, ExitCode
from bridge.options import broker_address, inbox_of
from bridge.settings.model import Settings


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One thing that was looked at: fine, or what to do."""

    subject: str
    is_ok: bool
    text: str
    exit_code: int = ExitCode.DONE


@with_settings
def check(load: LoadSettings) -> None:
    """
    Look at all that `bridge run` needs and change nothing.

    Each line says ok or what to do. Exit status: 0 all is well, 1 something is not as it
    must be, 2 the settings are wrong, 3 the broker cannot be reached.

    Examples:
        bridge check

        bridge check --config /etc/bridge.toml

    """
    settings = load()
    configure_logs(level="error", log_format=settings.log_format)
    raise typer.Exit(asyncio.run(_check(settings)))


async def _check(settings: Settings) -> int:
    code = ExitCode.DONE
    async for line in check_lines(settings):
        mark = "ok " if line.is_ok else "NO "
        typer.echo(f"{mark} {line.subject}: {line.text}")
        code = max(code, line.exit_code)
    return code


async def check_lines(settings: Settings) -> AsyncIterator[CheckLine]:
    """Look at one thing after the other."""
    yield CheckLine(
        "settings", is_ok=True, text=f"auth {settings.auth}, inbox {settings.inbox}"
    )
    is_reached = False
    for number, url in enumerate(broker_address(settings).urls, start=1):
        name = f"broker {number} ({URL(url).host}:{URL(url).port or 5672})"
        address = BrokerAddress(urls=(url,), timeout_s=settings.broker_timeout)
        try:
            connection = await open_connection(
                address, purpose=Purpose.CHECK, reader=FrameReader
            )
        except BrokerUnavailableError as exc:
            yield CheckLine(
                name, is_ok=False, text=str(exc), exit_code=ExitCode.UNREACHABLE
            )
            continue
        try:
            yield CheckLine(name, is_ok=True, text=_version(connection))
            if not is_reached:
                is_reached = True
                async for line in _topology_lines(connection, settings):
                    yield line
        finally:
            await connection.leave()
    yield await _store_line(settings)


def _version(connection: BrokerConnection[FrameReader]) -> str:
    told = connection.wire.server_properties
    return f"{told.get('product', 'a broker')!s} {told.get('version', '?')!s}"


async def _topology_lines(
    connection: BrokerConnection[FrameReader], settings: Settings
) -> AsyncIterator[CheckLine]:
    wanted = topology(BrokerNames(settings.namespace), settings.retry_delays)
    findings = await compare(connection, wanted, timeout_s=settings.broker_timeout)
    for finding in findings:
        is_ok = finding.state in (State.OK, State.MISSING)
        yield CheckLine(
            finding.name,
            is_ok=is_ok,
            text=finding.text or "as it must be",
            exit_code=ExitCode.DONE if is_ok else ExitCode.FAILED,
        )


async def _store_line(settings: Settings) -> CheckLine:
    inbox = inbox_of(settings)
    try:
        if not await inbox.look():  # opening would make it
            text = f"{settings.inbox} is not there yet; bridge run will make it"
            return CheckLine("inbox", is_ok=True, text=text)
        await inbox.open()
        await inbox.check()
    except StoreInUseError as exc:
        # What a running bridge has open, it can write: its readiness tells if not.
        return CheckLine("inbox", is_ok=True, text=exc.problem)
    except ConfigError as exc:
        return CheckLine("inbox", is_ok=False, text=str(exc), exit_code=ExitCode.USAGE)
    except StoreUnavailableError as exc:
        return CheckLine("inbox", is_ok=False, text=str(exc), exit_code=ExitCode.FAILED)
    finally:
        await inbox.close()
    return CheckLine("inbox", is_ok=True, text=f"{settings.inbox} can be written")
