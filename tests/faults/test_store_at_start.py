"""
A store that cannot be used when the bridge starts: the bridge starts and waits for it.

If it exited, an operator would have to start it again. Each case runs a whole bridge: its
ports are open, it is not ready and gives the reason, windows are refused temporarily, and
nothing is consumed. When the problem is fixed, everything resumes automatically.
"""

import resource
import signal
import sqlite3
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
)
from pathlib import Path

import aiohttp
import pytest

from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually
from tests.faults.test_sqlite_store import contents, move, no_file_can_grow, write
from tests.integration.programs import command, ended, settings_for_program, start
from tests.integration.running import (
    RunningBridge,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

Fault = Callable[[Path], AbstractAsyncContextManager[None]]
GARBAGE = b"no database at all" * 1000


@asynccontextmanager
async def locked(file: Path) -> AsyncIterator[None]:
    """Hold the write lock, as a backup or an operator's tool does."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@asynccontextmanager
async def held(file: Path) -> AsyncIterator[None]:
    """Hold the file, as a previous bridge does that still drains."""
    inbox = SqliteInbox(str(file), Retention(100, 1e9, 60))
    await inbox.open()
    yield
    await inbox.close()


@asynccontextmanager
async def damaged(file: Path) -> AsyncIterator[None]:
    """Replace the file by garbage; then fix it as the error text says, by moving it away."""
    write(file, GARBAGE)
    yield
    assert contents(file) == GARBAGE
    move(file, file.with_name("damaged"))


@asynccontextmanager
async def log_without_file(file: Path) -> AsyncIterator[None]:
    """Leave a write-ahead log without its file, as if only the file had been moved."""
    log = file.with_name(f"{file.name}-wal")
    write(log, GARBAGE)
    yield
    assert contents(log) == GARBAGE
    move(log, file.with_name("damaged-wal"))


PROBLEMS: dict[Fault, str] = {
    locked: "another process has locked it (SQLITE_BUSY)",
    held: "has it open; stop that bridge, or give each bridge its own file",
    damaged: (
        "the file is damaged, or no SQLite file at all; restore a copy, or move it "
        "and its -wal file away to start with an empty inbox (SQLITE_NOTADB)"
    ),
    log_without_file: (
        "inbox.sqlite3-wal exists and its file does not; "
        "restore the file, or move the log away as well"
    ),
}


@pytest.mark.parametrize(("fault", "problem"), PROBLEMS.items())
async def test_the_bridge_waits_for_its_store_and_resumes_automatically(
    broker: LocalNode, namespace: str, tmp_path: Path, fault: Fault, problem: str
) -> None:
    """No operator has to start it again."""
    file = tmp_path / "inbox.sqlite3"
    settings = settings_for(broker, namespace, inbox=f"sqlite:{file}")
    async with running_bridge(settings_for(broker, namespace)):
        pass  # declares the queues, so messages published now wait for the next bridge
    async with open_worker(broker, namespace) as worker:
        await worker.publish("ann", "waited")
    async with AsyncExitStack() as faults:
        await faults.enter_async_context(fault(file))
        async with running_bridge(settings, until_ready=False) as running:
            assert problem in await unready(running.listening.operator_url)
            assert not running.bridge.components.intake.is_consuming
            await assert_windows_are_refused_temporarily(running)

            await faults.aclose()

            await eventually(lambda: not running.bridge.unready_reasons(), within_s=20)
            url = running.listening.public_url
            async with open_windows(url, [running.token("ann")]) as (ann,):
                await eventually(lambda: ann.data() == ["waited"])


async def assert_windows_are_refused_temporarily(running: RunningBridge) -> None:
    """Check that a client is asked to reconnect later."""
    async with open_windows(
        running.listening.public_url,
        [running.token("ann")],
        until=lambda window: window.refusal is not None,
    ) as (window,):
        assert window.refusal is not None
        assert window.refusal["data"] == {"code": "not_available", "temporary": True}


@pytest.mark.parametrize(
    ("fault", "code"),
    [(held, 0), (damaged, 1)],  # a file that a running bridge has open is no problem
)
async def test_check_reports_the_same_problem(
    broker: LocalNode, namespace: str, tmp_path: Path, fault: Fault, code: int
) -> None:
    """`bridge check` before the start gives the same text as readiness after it."""
    file = tmp_path / "inbox.sqlite3"
    settings = settings_for_program(broker, namespace, inbox=f"sqlite:{file}")
    async with fault(file):
        result = await command("check", **settings)

    assert PROBLEMS[fault] in result.out
    assert result.code == code


async def unready(url: str) -> str:
    """Return the reasons why the bridge is not ready."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/health/ready") as answer,
    ):
        assert answer.status == 503
        return " ".join((await answer.json())["reasons"])


async def test_sigterm_ends_a_program_that_waits_for_disk_space(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """With exit status 0."""
    async with program_without_space(broker, namespace, tmp_path) as (process, url):
        assert "inbox store cannot be written" in await unready(url)
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        assert process.stderr is not None
        log = await process.stderr.read()
    assert b"Traceback" not in log
    assert log.count(b"inbox.unavailable") == 1


async def test_the_program_resumes_when_there_is_disk_space_again(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """In the same process, without any other action of an operator."""
    async with program_without_space(broker, namespace, tmp_path) as (process, url):
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))

        async def is_ready() -> bool:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{url}/health/ready") as answer,
            ):
                return answer.status == 200

        await eventually(is_ready, within_s=20)


@asynccontextmanager
async def program_without_space(
    broker: LocalNode, namespace: str, folder: Path
) -> AsyncIterator[tuple[Process, str]]:
    """Start `bridge run` without disk space; yield the process and its operator URL."""
    inbox = f"sqlite:{folder / 'inbox.sqlite3'}"
    with no_file_can_grow():  # the process inherits the limit
        process = await start(
            "run", **settings_for_program(broker, namespace, inbox=inbox)
        )
    assert process.stdout is not None
    try:
        yield process, (await process.stdout.readline()).decode().split()[6]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_wrong_setting_fails_the_start_with_exit_code_2(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """Waiting would not fix it; `bridge check` reports the same."""
    inbox = f"sqlite:{tmp_path / 'nowhere' / 'inbox'}"
    settings = settings_for_program(broker, namespace, inbox=inbox)
    problem = f"BRIDGE_INBOX: {inbox}: the folder {tmp_path / 'nowhere'} does not exist"

    for name in ("run", "check"):
        result = await command(name, **settings)
        assert result.code == 2
        assert problem in result.out + result.err
