"""`bridge inbox migrate` run as a command: from one bridge to a fleet."""

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from bridge.core.redis_address import parse_redis
from bridge.inbox.contract import Retention
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually
from tests.inbox_files import Filling, fill
from tests.integration.programs import (
    LIMIT_S,
    Result,
    command,
    program,
    settings_for_program,
    start,
    token_for,
)
from tests.integration.running import open_worker
from tests.integration.sockets.js_pages import open_pages
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=1000, max_age_s=7 * 86400, dedupe_s=600)
USERS = 50


@pytest_asyncio.fixture(loop_scope="function")
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """Start a server for one test."""
    async with RedisServer.start(tmp_path / "redis", is_durable=False) as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the file."""
    return tmp_path / "inbox.sqlite3"


async def carry(path: Path, redis: RedisServer, *arguments: str) -> Result:
    """Run the command and wait for its end."""
    return await command(
        *("inbox", "migrate", "--from", f"sqlite:{path}", "--json"),
        *arguments,
        inbox=redis.url,
    )


async def upto(redis: RedisServer) -> int:
    """Return the recorded progress; 0 if there is none."""
    keys = await asyncio.to_thread(redis.command, "KEYS", "*}:carry")
    if not keys:
        return 0
    noted = await asyncio.to_thread(redis.command, "HGET", keys, "upto")
    return int(noted) if noted.isdecimal() else 0


async def assert_the_same(path: Path, redis: RedisServer) -> None:
    """Check that both stores hold the same messages of each user."""
    file = SqliteInbox(str(path), RETENTION)
    store = RedisInbox(parse_redis(redis.url), RETENTION)
    await file.open()
    await store.open()
    try:
        for user in (f"user-{number}" for number in range(USERS)):
            assert await store.state(user) == await file.state(user)
            for after in (0, 200):
                limits = {"after": after, "max_messages": 9999, "max_bytes": 1 << 30}
                expected = await file.read(user, **limits)
                found = await store.read(user, **limits)
                assert list(found.messages) == list(expected.messages)
    finally:
        await store.close()
        await file.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_an_interrupted_migration_is_finished_by_the_same_command(
    path: Path, redis: RedisServer, number: signal.Signals
) -> None:
    """Without duplicates or losses; after Ctrl-C the command says how to continue."""
    await fill(str(path), Filling(messages=20_000, users=USERS), RETENTION)
    stderr = ""
    while not 0 < await upto(redis) < USERS:
        # Repeat if the migration was complete before the signal arrived.
        await asyncio.to_thread(redis.command, "FLUSHALL")
        process = await start(
            "inbox", "migrate", "--from", f"sqlite:{path}", inbox=redis.url
        )

        async def has_begun(process: Process = process) -> bool:
            return process.returncode is not None or bool(await upto(redis))

        await eventually(has_begun, within_s=30)
        if process.returncode is None:
            process.send_signal(number)
        async with asyncio.timeout(LIMIT_S):
            stderr = (await process.communicate())[1].decode()

    last = await carry(path, redis)

    if number is signal.SIGINT:
        assert "run the same command to continue" in stderr
    assert last.code == 0, last.err
    result = orjson.loads(last.out)
    assert result["is_resumed"]
    assert result["is_done"]
    assert result["put"]["messages"] < result["there"]["messages"] == 20_000
    await assert_the_same(path, redis)


async def test_the_output_of_a_dry_run_a_migration_and_a_repetition(
    path: Path, redis: RedisServer
) -> None:
    """A script may repeat the command without knowing that it is done."""
    await fill(str(path), Filling(messages=500, users=USERS), RETENTION)
    words = ("inbox", "migrate", "--from", f"sqlite:{path}", "--to", redis.url)

    dry = await command(*words, "--dry-run")
    done = await command(*words)
    again = await command(*words)

    amount = "500 messages and 125 ids of 50 users"
    route = f"from sqlite:{path} to {redis.url.removesuffix('/0')}"
    assert (dry.code, dry.out) == (0, f"{amount} would be copied {route}\n")
    assert (done.code, done.out) == (0, f"{amount} copied {route}, and compared\n")
    assert (again.code, again.out) == (
        0,
        f"{amount} had already been copied {route}; nothing was left to do\n",
    )


async def test_wrong_use_is_reported(path: Path, redis: RedisServer) -> None:
    """With exit status 2 for wrong options, and 3 for a store that cannot be reached."""
    missing = await carry(path, redis)
    backwards = await command(
        "inbox", "migrate", "--from", redis.url, "--to", f"sqlite:{path}"
    )
    await fill(str(path), Filling(messages=10, users=2), RETENTION)
    unreachable = await command(
        *("inbox", "migrate", "--from", f"sqlite:{path}"), inbox="redis://127.0.0.1:1"
    )

    assert (missing.code, "does not exist" in missing.err) == (2, True)
    assert backwards.code == 2
    assert unreachable.code == 3
    assert "is Redis running at 127.0.0.1:1?" in unreachable.err


async def test_a_client_recovers_in_the_fleet_with_its_position_from_one_bridge(
    broker: LocalNode, namespace: str, path: Path, redis: RedisServer
) -> None:
    """It misses no message that was published meanwhile."""
    file = f"sqlite:{path}"
    settings = settings_for_program(broker, namespace, inbox=file)
    token = token_for("ann", **settings)
    async with open_pages() as pages, open_worker(broker, namespace) as worker:
        async with program(broker, namespace, inbox=file) as single:
            port = single.port
            await pages.connected(
                "page",
                single.public_url,
                auth={"token": token},
                transports=["websocket"],
            )
            for number in range(5):
                await worker.publish("ann", number)
            await eventually(lambda: len(pages.data("page")) == 5)
            held = await carry(path, redis, "--dry-run")
            assert (held.code, "another bridge" in held.err) == (1, True)
            single.process.send_signal(signal.SIGTERM)
            assert await single.ended() == 0
        for number in range(5, 10):
            await worker.publish("ann", number)

        result = await command(
            *("inbox", "migrate", "--from", file, "--to", redis.url),
            namespace=namespace,
        )

        assert result.code == 0, result.err
        async with program(broker, namespace, inbox=redis.url, port=port):
            await pages.recovered("page", range(10))
