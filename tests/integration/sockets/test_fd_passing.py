"""Passing connections between workers: odd requests, and no file descriptors left."""

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
from tests.integration.sockets.raw_pages import RawPoller, raw_poller, raw_tcp
from tests.integration.sockets.running_server import RunningServer, open_server
from tests.tokens import token


@asynccontextmanager
async def two_workers(
    folder: Path,
) -> AsyncIterator[tuple[RunningServer, RunningServer]]:
    """Run two workers, each on a port of its own."""
    slots = [WorkerSlot(str(folder), index) for index in range(2)]
    async with (
        open_server(slot=slots[0]) as owner,
        open_server(slot=slots[1]) as other,
    ):
        for slot in slots:
            await eventually(Path(slot.handover_socket).exists)
        yield owner, other


@contextmanager
def no_file_descriptors() -> Iterator[None]:
    """Use up all file descriptors, as when windows have taken all of them."""
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
    """Return a poll of `page`, which any worker may receive."""
    return f"GET {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_a_compressed_body_is_passed_on_decompressed(tmp_path: Path) -> None:
    """Aiohttp decompressed it in the first worker, so `Content-Encoding` must be removed."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        body = gzip.compress(b"40" + json.dumps({"token": token()}).encode())
        url = str(other.socket_url(transport="polling", sid=page.sid))
        headers = {"Content-Encoding": "gzip"}
        async with page.http.post(url, data=body, headers=headers) as response:
            assert response.status == 200
        await eventually(lambda: len(owner.windows("alice")) == 1)


async def test_a_worker_without_file_descriptors_accepts_connections_again_later(
    tmp_path: Path, log: Log
) -> None:
    """Its windows are not affected by the connection that it could not accept."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        await page.join("alice")
        with socket.socket(socket.AF_UNIX) as giver, no_file_descriptors():
            giver.settimeout(0)
            path = str(tmp_path / "handover-0")
            await asyncio.get_running_loop().sock_connect(giver, path)
            await eventually(lambda: "handover.accept_failed" in log.text)
        await owner.store("alice", 1)
        async with raw_tcp(other) as connection:
            await connection.send(poll_of(page))
            assert b'"message",1' in await connection.receive_until(b"message")


async def test_a_worker_without_file_descriptors_passes_no_connection_on(
    tmp_path: Path,
) -> None:
    """The client gets an error response and retries; no error is logged."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        await page.join("alice")
        async with raw_tcp(other) as connection:
            await connection.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            await connection.receive_until(b"true}")
            with no_file_descriptors():
                await connection.send(poll_of(page))
                assert (await connection.receive()).startswith(b"HTTP/1.1 400")


async def test_a_connection_passed_on_before_the_port_is_open_is_closed(
    tmp_path: Path, log: Log
) -> None:
    """It asks a restarting worker for a session of the previous process."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        owner.io.engine._listener._http = None
        async with raw_tcp(other) as connection:
            await connection.send(poll_of(page))
            assert await connection.read_to_end() == b""
        assert "the listener is not open" in log.text
