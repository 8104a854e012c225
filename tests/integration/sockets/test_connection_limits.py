"""Connections without a request: a deadline, a cap per address, and spare descriptors."""

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from bridge.core.client_address import parse_networks
from bridge.enums import ConnectionRefusal
from bridge.http.listening_sockets import bind_sockets
from tests.conftest import eventually
from tests.integration.sockets.conftest import Log
from tests.integration.sockets.raw_pages import raw_poller, raw_tcp, raw_window
from tests.integration.sockets.running_server import (
    Plan,
    RunningServer,
    open_server,
)

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def refused(server: RunningServer, reason: ConnectionRefusal) -> float:
    """Return how many connections were refused for `reason`."""
    return server.count("connections_refused_total", reason=reason)


def refusals_in(log: Log) -> list[str]:
    """Return the reasons of the logged refusals."""
    return [
        line["reason"] for line in log.lines if line["event"] == "connections.refused"
    ]


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Use the file descriptors of this process up, except the last eighth."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    limit = used + 64
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while (descriptor := os.dup(0)) < limit - limit // 8:
            stack.callback(os.close, descriptor)
        os.close(descriptor)
        yield


async def test_hundreds_of_connections_wait_while_the_bridge_is_busy() -> None:
    """
    After a restart of a proxy, all windows connect at once.

    Linux ignores a client beyond the backlog: it tries again after a second, then after
    two, and may be reset although it believes that it is connected.
    """
    async with open_server(Plan()) as server:
        address = ("127.0.0.1", server.socket_url().port or 0)
        with ExitStack() as stack:
            for _ in range(300):  # without an await, so nothing is accepted meanwhile
                waiting = socket.create_connection(address, timeout=0.5)
                stack.enter_context(waiting)


@pytest.mark.parametrize("start", [b"", b"G", b"\r\n\r\n", HEALTH[:-2]])
async def test_a_connection_without_a_complete_request_is_aborted_at_its_deadline(
    start: bytes,
) -> None:
    """It holds memory and a descriptor, whether it sends nothing or a byte now and then."""
    async with open_server(Plan(connect_s=0.2)) as server, raw_tcp(server) as slow:
        await slow.send(start)

        assert await slow.read_to_end() == b""
        await eventually(lambda: not server.waiting_connections)
        await eventually(lambda: server.connection_count == 0)
        assert refused(server, ConnectionRefusal.NO_REQUEST) == 1


async def test_bytes_do_not_extend_the_deadline() -> None:
    """The deadline is for the whole request head."""
    async with open_server(Plan(connect_s=0.3)) as server, raw_tcp(server) as slow:
        await slow.send(b"GET / HTTP/1.1\r\nX-Filler: ")
        await eventually(lambda: server.waiting_connections == 1)

        def is_aborted_while_it_sends() -> bool:
            with suppress(OSError):
                slow.socket.send(b"y")
            return not server.waiting_connections

        await eventually(is_aborted_while_it_sends)


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX-Filler: y"])
async def test_later_requests_on_a_connection_have_the_same_deadline(
    start: bytes,
) -> None:
    """The pause between two requests may be much longer than a head may take."""
    async with open_server(Plan(connect_s=0.3)) as server, raw_tcp(server) as slow:
        for _ in range(2):
            await slow.send(HEALTH)
            await slow.receive_until(b"true}")
        await slow.send(start)

        def is_aborted_while_it_sends() -> bool:
            with suppress(OSError):
                slow.socket.send(b"y")
            return not server.counted_connections

        await eventually(is_aborted_while_it_sends)
        assert refused(server, ConnectionRefusal.NO_REQUEST) == 1


async def test_an_empty_line_after_a_request_starts_no_deadline() -> None:
    """Old clients send one; the connection may wait for the next request."""
    async with open_server(Plan(connect_s=0.1)) as server, raw_tcp(server) as client:
        await client.send(HEALTH + b"\r\n")
        await client.receive_until(b"true}")
        await client.send(b"\r\n")
        async with raw_tcp(server) as other:  # its deadline is not earlier
            assert await other.read_to_end() == b""
        await client.send(HEALTH)
        await client.receive_until(b"true}")


async def test_a_request_that_comes_in_pieces_is_served(server: RunningServer) -> None:
    """Networks split requests anywhere."""
    async with raw_tcp(server) as connection:
        for index in range(len(HEALTH)):
            await connection.send(HEALTH[index : index + 1])
        assert b" 200 " in await connection.receive_until(b"true}")


async def test_what_is_not_http_is_refused_at_once(server: RunningServer) -> None:
    """A browser that uses https on this port should show an error without waiting."""
    async with raw_tcp(server) as connection:
        await connection.send(b"\x16\x03\x01\x02\x00")
        assert (await connection.read_to_end()).startswith(b"HTTP/1.0 400")


async def test_a_request_head_has_a_size_limit(server: RunningServer) -> None:
    """Otherwise it would be buffered until the deadline."""
    async with raw_tcp(server) as connection:
        await connection.send(b"GET / HTTP/1.1\r\n")
        with suppress(ConnectionError):
            await connection.send(b"X-Filler: yyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 4000)
        await eventually(lambda: refused(server, ConnectionRefusal.NO_REQUEST) == 1)
        await eventually(lambda: not server.waiting_connections)


async def test_one_address_cannot_open_any_number_of_connections(log: Log) -> None:
    """The cap of windows counts no connection that sends nothing or polls nothing."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            open_server(Plan(windows_per_address=2))
        )
        for _ in range(4):
            await stack.enter_async_context(raw_tcp(server))
        await eventually(lambda: server.waiting_connections == 4)
        for _ in range(3):
            fifth = await stack.enter_async_context(raw_tcp(server))
            assert await fifth.read_to_end() == b""

        assert refused(server, ConnectionRefusal.ADDRESS) == 3
        assert refusals_in(log) == ["address"]  # one line a minute


async def test_idle_http_connections_count_too_and_windows_do_not() -> None:
    """A keep-alive connection holds more memory than a silent one; windows have a cap."""
    async with (
        open_server(Plan(windows_per_address=1)) as server,
        raw_tcp(server) as idle,
        raw_window(server) as window,
    ):
        await window.join("alice")
        await idle.send(HEALTH)
        await idle.receive_until(b"true}")
        async with raw_tcp(server), raw_tcp(server) as third:
            assert await third.read_to_end() == b""
        await eventually(lambda: server.counted_connections == 1)
        async with raw_tcp(server) as again:
            await again.send(HEALTH)
            assert b" 200 " in await again.receive_until(b"true}")


async def test_no_connection_stays_counted() -> None:
    """Each way of a connection to its end, or an address would be locked out one day."""
    async with open_server() as server:
        async with raw_tcp(server) as connection, raw_poller(server) as page:
            await page.join("alice")
            await connection.send(HEALTH)
            await connection.receive_until(b"true}")
            await connection.open_websocket()
            async with raw_window(server, sid=page.sid) as upgrade:
                await upgrade.send("2probe")
                assert await upgrade.receive() == "3probe"
        async with raw_window(server) as window:
            await window.join("alice")
        async with raw_tcp(server) as garbage:
            await garbage.send(b"\0")
            await garbage.read_to_end()
        await eventually(lambda: server.counted_connections == 0)


async def test_a_trusted_proxy_may_open_any_number_of_connections() -> None:
    """All clients come from its address."""
    plan = Plan(windows_per_address=1, trusted_proxies=parse_networks(("127.0.0.0/8",)))
    async with open_server(plan) as server, AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(raw_tcp(server))
        await eventually(lambda: server.waiting_connections == 5)


async def test_windows_of_an_ipv6_network_count_together() -> None:
    """Otherwise a host would pass every cap with the addresses of its network."""
    plan = Plan(windows_per_address=1, trusted_proxies=parse_networks(("127.0.0.0/8",)))
    async with (
        open_server(plan) as server,
        raw_window(server, headers={"X-Forwarded-For": "2001:db8::1"}),
        raw_window(server, headers={"X-Forwarded-For": "2001:db8:0:1::1"}),
        aiohttp.ClientSession() as http,
    ):
        for address, status in (("2001:db8::2", 429), ("2001:db8:0:2::1", 200)):
            async with http.get(
                server.socket_url(transport="polling"),
                headers={"X-Forwarded-For": address},
            ) as response:
                assert response.status == status


async def test_clients_behind_a_unix_socket_are_told_apart(tmp_path: Path) -> None:
    """Only a proxy connects to it, so its header names the client."""
    path = str(tmp_path / "bridge.sock")
    async with open_server(Plan(windows_per_address=1)) as server:
        (bound,) = await asyncio.to_thread(
            bind_sockets, (f"unix:{path}",), 0, "BRIDGE_PORT"
        )
        await server.io.engine.site(server.runner, bound).start()
        url = "http://localhost/socket.io/?EIO=4&transport=websocket"
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path))
            )
            for address in ("192.0.2.1", "192.0.2.2"):
                headers = {"X-Forwarded-For": address}
                await stack.enter_async_context(http.ws_connect(url, headers=headers))
            addresses = {session.address for session in server.sessions()}
            assert addresses == {"192.0.2.1", "192.0.2.2"}


async def test_the_last_descriptors_are_not_for_windows(log: Log) -> None:
    """The broker, the store and the operator port need them to recover."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_server())
        window = await stack.enter_async_context(raw_window(server))
        await window.join("alice")
        with few_descriptors():
            late = await stack.enter_async_context(raw_tcp(server))
            assert await late.read_to_end() == b""

            await server.store("alice", 1)
            await window.receive_until('42["message",1')
        assert refused(server, ConnectionRefusal.DESCRIPTORS) == 1
        assert refusals_in(log) == ["descriptors"]
        again = await stack.enter_async_context(raw_tcp(server))
        await again.send(HEALTH)
        assert b" 200 " in await again.receive_until(b"true}")


async def test_an_origin_that_cannot_be_parsed_does_not_use_a_connection_up() -> None:
    """The connection would count until a restart, and the cap lock all neighbors out."""
    handshake = (
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: xn--9.example\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://xn--9.example\r\n\r\n"
    )
    async with open_server(Plan()) as server, raw_tcp(server) as client:
        await client.send(handshake)

        # The session is refused with a reason when the client connects.
        assert (await client.receive()).startswith(b"HTTP/1.1 101 ")
        assert server.counted_connections == 0
