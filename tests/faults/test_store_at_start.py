"""
A store that cannot be used when the bridge starts: it starts, says so, and waits.

A bridge that ended for it would have to be started again by hand. Each case with a whole
bridge: doors open, not ready, with the sentence; windows are told to come again; nothing
is taken from the broker; and when it is mended all goes on by itself.
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

from bridge.demo.private_node import LocalNode
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually
from tests.faults.test_sqlite_store import contents, move, no_file_grows, write
from tests.integration.programs import command, ended, settings_for_program, start
from tests.integration.running import (
    RunningBridge,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)

Trouble = Callable[[Path], AbstractAsyncContextManager[None]]
GARBAGE = b"no database at all" * 1000


@asynccontextmanager
async def locked(file: Path) -> AsyncIterator[None]:
    """Let another program have the write lock: a backup, an operator's tool."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@asynccontextmanager
async def held(file: Path) -> AsyncIterator[None]:
    """Let another bridge have it: the one before, which still drains."""
    inbox = SqliteInbox(str(file), Retention(100, 1e9, 60))
    await inbox.open()
    yield
    await inbox.close()


@asynccontextmanager
async def damaged(file: Path) -> AsyncIterator[None]:
    """Put garbage in its place; mended by the book, it is moved away."""
    write(file, GARBAGE)
    yield
    assert contents(file) == GARBAGE
    move(file, file.with_name("damaged"))


@asynccontextmanager
async def without_its_file(file: Path) -> AsyncIterator[None]:
    """Leave the log alone: somebody moved the file and forgot it."""
    log = file.with_name(f"{file.name}-wal")
    write(log, GARBAGE)
    yield
    assert contents(log) == GARBAGE
    move(log, file.with_name("damaged-wal"))


SENTENCES: dict[Trouble, str] = {
    locked: "another process has locked it (SQLITE_BUSY)",
    held: "has it open; stop that bridge, or give each bridge its own file",
    damaged: (
        "the file is damaged, or no SQLite file at all; restore a copy, or move it "
        "and its -wal file away to start with an empty inbox (SQLITE_NOTADB)"
    ),
    without_its_file: (
        "inbox.sqlite3-wal exists and its file does not; "
        "restore the file, or move the log away as well"
    ),
}


@pytest.mark.parametrize(("trouble", "sentence"), SENTENCES.items())
async def test_it_waits_unready_takes_nothing_and_goes_on_by_itself(
    broker: LocalNode, namespace: str, tmp_path: Path, trouble: Trouble, sentence: str
) -> None:
    """Nobody has to start it again."""
    file = tmp_path / "inbox.sqlite3"
    settings = settings_for(broker, namespace, inbox=f"sqlite:{file}")
    async with running_bridge(settings_for(broker, namespace)):
        pass  # declares; what is published now waits for the next one
    async with open_worker(broker, namespace) as worker:
        await worker.publish("ann", "waited")
    async with AsyncExitStack() as troubles:
        await troubles.enter_async_context(trouble(file))
        async with running_bridge(settings, until_ready=False) as running:
            assert sentence in await unready(running.listening.operator_url)
            assert not running.bridge.components.intake.is_consuming
            await a_window_is_told_to_come_again(running)

            await troubles.aclose()

            await eventually(lambda: not running.bridge.unready_reasons(), within_s=20)
            url = running.listening.public_url
            async with open_windows(url, [running.token("ann")]) as (ann,):
                await eventually(lambda: ann.data() == ["waited"])


async def a_window_is_told_to_come_again(running: RunningBridge) -> None:
    """Not that it may not come at all."""
    async with open_windows(
        running.listening.public_url,
        [running.token("ann")],
        until=lambda window: window.refusal is not None,
    ) as (window,):
        assert window.refusal is not None
        assert window.refusal["data"] == {"code": "not_available", "temporary": True}


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(held, 0), (damaged, 1)],  # what a running bridge has open is as it must be
)
async def test_check_says_the_same_sentence(
    broker: LocalNode, namespace: str, tmp_path: Path, trouble: Trouble, code: int
) -> None:
    """Who looks before the start reads what they would read after it."""
    file = tmp_path / "inbox.sqlite3"
    settings = settings_for_program(broker, namespace, inbox=f"sqlite:{file}")
    async with trouble(file):
        result = await command("check", **settings)

    assert SENTENCES[trouble] in result.out
    assert result.code == code


async def unready(url: str) -> str:
    """Ask whether it is ready, which it must not be, and return why."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/health/ready") as answer,
    ):
        assert answer.status == 503
        return " ".join((await answer.json())["reasons"])


async def test_without_room_the_program_waits_and_sigterm_ends_it(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """With the room back it would go on; told to go meanwhile, it goes, with status 0."""
    async with program_without_room(broker, namespace, tmp_path) as (process, url):
        assert "inbox store cannot be written" in await unready(url)
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        assert process.stderr is not None
        log = await process.stderr.read()
    assert b"Traceback" not in log
    assert log.count(b"inbox.unavailable") == 1


async def test_when_there_is_room_again_the_program_goes_on(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """In the same process: nobody has to do anything but make room."""
    async with program_without_room(broker, namespace, tmp_path) as (process, url):
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
async def program_without_room(
    broker: LocalNode, namespace: str, folder: Path
) -> AsyncIterator[tuple[Process, str]]:
    """Start `bridge run` where no file may grow; yield it and its operator's door."""
    inbox = f"sqlite:{folder / 'inbox.sqlite3'}"
    with no_file_grows():  # which the process inherits
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


async def test_a_wrong_setting_refuses_the_start_with_exit_code_2(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """No waiting mends it; and `check` says the same."""
    inbox = f"sqlite:{tmp_path / 'nowhere' / 'inbox'}"
    settings = settings_for_program(broker, namespace, inbox=inbox)
    sentence = (
        f"BRIDGE_INBOX: {inbox}: the folder {tmp_path / 'nowhere'} does not exist"
    )

    for name in ("run", "check"):
        result = await command(name, **settings)
        assert result.code == 2
        assert sentence in result.out + result.err
