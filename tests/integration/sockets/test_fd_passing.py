"""Connections that go from worker to worker, when they are odd or files have run out."""

import asyncio
import gzip
import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from yarl import URL

from bridge.core.worker_slot import WorkerSlot
from tests.conftest import eventually
from tests.integration.sockets.conftest import Log
from tests.integration.sockets.listeners import Door, open_door
from tests.integration.sockets.raw_pages import RawPoller, raw_poller, raw_tcp
from tests.tokens import token


@asynccontextmanager
async def two_workers(folder: Path) -> AsyncIterator[tuple[Door, Door]]:
    """Open the doors of two workers, each on a port of its own."""
    slots = [WorkerSlot(str(folder), index) for index in range(2)]
    async with open_door(slot=slots[0]) as owner, open_door(slot=slots[1]) as other:
        for slot in slots:
            await eventually(Path(slot.handover_socket).exists)
        yield owner, other


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no file, as when windows have taken all of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while True:
            try:
                stack.callback(os.close, os.dup(0))
            except OSError:
                break
        yield


def poll_of(page: RawPoller) -> bytes:
    """Return a poll of `page`, to be sent to whichever worker."""
    return f"GET {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_a_compressed_body_is_read_by_whoever_gets_it(tmp_path: Path) -> None:
    """It was unpacked by the first, and must not be called packed to the second."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        body = gzip.compress(b"40" + json.dumps({"token": token()}).encode())
        url = str(other.socket_url(transport="polling", sid=page.sid))
        headers = {"Content-Encoding": "gzip"}
        async with page.http.post(url, data=body, headers=headers) as response:
            assert response.status == 200
        await eventually(lambda: len(owner.windows("alice")) == 1)


async def test_a_worker_without_files_takes_connections_again_when_it_has_some(
    tmp_path: Path, log: Log
) -> None:
    """Windows that it has are no worse off for one that cannot come."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        await page.join("alice")
        with socket.socket(socket.AF_UNIX) as giver, no_more_files():
            giver.settimeout(0)
            path = str(tmp_path / "handover-0")
            await asyncio.get_running_loop().sock_connect(giver, path)
            await eventually(lambda: "handover.accept_failed" in log.text)
        await owner.store("alice", 1)
        async with raw_tcp(other) as connection:
            await connection.send(poll_of(page))
            assert b'"message",1' in await connection.receive_until(b"message")


async def test_a_worker_without_files_gives_no_connection_away(tmp_path: Path) -> None:
    """The page is answered, comes again, and nothing of it is a fault in the log."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        await page.join("alice")
        async with raw_tcp(other) as connection:
            await connection.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            await connection.receive_until(b"true}")
            with no_more_files():
                await connection.send(poll_of(page))
                assert (await connection.receive()).startswith(b"HTTP/1.1 400")


async def test_a_connection_that_comes_before_the_door_is_open_is_closed(
    tmp_path: Path, log: Log
) -> None:
    """To a worker that is being started again, about a session of the one before it."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        owner.server.engine._listener._http = None
        async with raw_tcp(other) as connection:
            await connection.send(poll_of(page))
            assert await connection.read_to_end() == b""
        assert "the listener is not open" in log.text
