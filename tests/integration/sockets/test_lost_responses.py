"""
A polling client whose connection is reset while a response is under way.

Browsers and HTTP libraries repeat such a request by themselves, so the client never
notices the reset.
"""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from yarl import URL

from tests.conftest import eventually
from tests.integration.running import python_client
from tests.integration.sockets.cutting_proxy import open_cutting_proxy
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import (
    SEPARATOR,
    RawPoller,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.test_fd_passing import two_workers
from tests.integration.sockets.test_messages import options
from tests.integration.sockets.test_polling import is_polled
from tests.tokens import token

MARK = b'42["message"'
# Nothing of the response, a part of its headers, and all of its headers.
CUTS = pytest.mark.parametrize("after_bytes", [0, 20, 300])


async def get(page: RawPoller, **query: str) -> list[str]:
    """Poll with this query."""
    url = URL(page.url).update_query(query)
    async with page.http.get(url) as response:
        text = await response.text()
        assert response.status == 200, text
        return text.split(SEPARATOR)


async def delivered(server: RunningServer) -> int:
    """Return the delivered mark of alice."""
    return (await server.inbox.state("alice")).delivered


# --- stock clients


@CUTS
async def test_the_python_client_gets_the_messages_of_a_lost_response(
    server: RunningServer, after_bytes: int
) -> None:
    """Aiohttp repeats the GET, with the same `t`."""
    got: list[Any] = []
    async with (
        open_cutting_proxy(server.port) as proxy,
        python_client(reconnection_delay=0.01) as client,
    ):
        client.on("message", lambda data, _position: got.append(data))
        auth = {"token": token()}
        await client.connect(proxy.url, auth=auth, transports=["polling"])
        for number in range(4):
            proxy.cut_next(MARK, after_bytes=after_bytes)
            await server.store("alice", number)
            await eventually(
                lambda number=number: number in got  # type: ignore[misc] # mypy does not see through the default
            )
        assert proxy.cuts == 4
    # This client has no recovery: after a reconnect it gets what is not delivered.
    assert got == list(range(4))


@CUTS
async def test_the_stock_client_in_node_gets_the_messages_of_a_lost_response(
    server: RunningServer, pages: Pages, after_bytes: int
) -> None:
    """Node repeats nothing: the client reconnects and recovers."""
    async with open_cutting_proxy(server.port) as proxy:
        await pages.connected("page", proxy.url, **options("alice", "polling"))
        for number in range(4):
            proxy.cut_next(MARK, after_bytes=after_bytes)
            await server.store("alice", number)
            await pages.until("page", "event", "message", count=number + 1)
        assert proxy.cuts == 4
    assert pages.data("page") == list(range(4))


# --- the same poll again


async def test_a_repeated_poll_gets_the_same_answer_until_the_next_one(
    server: RunningServer,
) -> None:
    """The `t` of the stock clients differs for each poll, so they get nothing twice."""
    async with raw_poller(server) as page:
        await page.join("alice")
        await server.store_numbers("alice", start=0, stop=20)
        first = await get(page, t="a")

        assert await get(page, t="a") == first
        assert await get(page, t="a") == first
        assert await delivered(server) == 0
        second = await get(page, t="b")

        numbers = [json.loads(packet[2:])[1] for packet in first + second]
        assert numbers == list(range(20))
        assert await delivered(server) == len(first)


async def test_a_repeated_poll_replaces_the_one_that_is_pending(
    server: RunningServer,
) -> None:
    """The bridge may not have noticed yet that the first connection is lost."""
    async with raw_poller(server) as page:
        await page.join("alice")
        (window,) = server.windows("alice")
        first = asyncio.create_task(get(page, t="a"))
        await eventually(lambda: is_polled(window.session))
        again = asyncio.create_task(get(page, t="a"))
        assert await first == ["6"]
        assert is_polled(window.session)

        await server.store("alice", 1)

        assert '["message",1' in (await again)[0]
        assert not window.session.is_closed


async def test_a_lost_response_is_repeated_to_a_client_without_a_timestamp(
    server: RunningServer,
) -> None:
    """The connection of the last response is gone, though it was to be kept alive."""
    async with raw_poller(server) as page:
        await page.join("alice")
        await server.store("alice", 1)
        async with raw_tcp(server) as connection:
            await connection.send(
                f"GET {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            await connection.receive_until(MARK)
        await eventually(lambda: server.connection_count == 1)

        assert '["message",1' in (await page.poll())[0]
        assert await delivered(server) == 0
        await server.store("alice", 2)
        assert '["message",2' in (await page.poll())[0]
        assert await delivered(server) == 1


async def test_the_response_that_opens_a_session_is_not_repeated(
    server: RunningServer,
) -> None:
    """
    A client that knows the session id has received it.

    HAProxy ends the connection of that request if later ones go to another backend.
    """
    async with raw_poller(server) as page:
        async with raw_tcp(server) as connection:
            path = server.socket_url(transport="polling").raw_path_qs
            await connection.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            response = (await connection.receive_until(b"}")).decode()
        page.sid = json.loads(response[response.index("{") :])["sid"]
        await eventually(lambda: server.connection_count == 1)

        packets = await page.join("alice")

        assert packets[0].startswith("40")


async def test_a_later_request_on_a_connection_proves_that_its_response_was_read(
    server: RunningServer,
) -> None:
    """Proxies reuse connections for requests of any client, and end them at any time."""
    async with raw_poller(server) as page:
        await page.join("alice")
        await server.store("alice", 1)
        url = URL(page.url)
        async with raw_tcp(server) as connection:
            await connection.send(
                f"GET {url.raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            await connection.receive_until(MARK)
            await connection.send(
                f"OPTIONS {url.raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            await connection.receive_until(b"ok")
        await eventually(lambda: server.connection_count == 1)
        await server.store("alice", 2)

        assert '["message",2' in (await page.poll())[0]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_with_one_connection_for_each_poll_gets_nothing_twice(
    server: RunningServer, version: str
) -> None:
    """As behind nginx with its defaults."""
    async with raw_poller(server) as page:
        await page.join("alice")
        for number in range(3):
            await server.store("alice", number)
            async with raw_tcp(server) as connection:
                await connection.send(
                    f"GET {URL(page.url).raw_path_qs} HTTP/{version}\r\nHost: x\r\n"
                    "Connection: close\r\n\r\n".encode()
                )
                response = await connection.read_to_end()
            assert response.count(b'["message",') == 1
            assert b'["message",%d' % number in response


async def test_a_response_is_repeated_through_another_worker(tmp_path: Any) -> None:
    """The repeated poll may reach any worker."""
    async with two_workers(tmp_path) as (owner, other), raw_poller(owner) as page:
        await page.join("alice")
        await owner.store("alice", 1)
        first = await get(page, t="a")
        url = other.socket_url(transport="polling", sid=page.sid, t="a")
        async with page.http.get(url) as response:
            assert (await response.text()).split(SEPARATOR) == first
        assert await delivered(owner) == 0


async def test_a_connection_that_another_worker_uses_next_was_not_lost(
    tmp_path: Any,
) -> None:
    """A proxy reuses its connections; the next request proves that it read the response."""
    async with (
        two_workers(tmp_path) as (owner, other),
        raw_poller(owner) as page,
        raw_poller(other) as neighbor,
        raw_tcp(owner) as connection,
    ):
        await page.join("alice")
        await neighbor.join("bob")
        await owner.store("alice", 1)
        for path in (URL(page.url).raw_path_qs, URL(neighbor.url).raw_path_qs):
            await other.store("bob", "for bob")
            await connection.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await connection.receive_until(MARK)
        await owner.store("alice", 2)

        packets = await page.poll()

        assert len(packets) == 1
        assert '["message",2' in packets[0]
        assert await delivered(owner) == 1


# --- the end of polling


async def test_an_upgrade_proves_that_the_last_response_has_arrived(
    server: RunningServer,
) -> None:
    """The stock client waits for its last poll before it upgrades."""
    async with raw_poller(server) as page:
        await page.join("alice")
        await server.store("alice", 1)
        lost = await get(page, t="a")
        async with raw_window(server, sid=page.sid) as upgrade:
            await upgrade.send("2probe")
            assert await upgrade.receive() == "3probe"
            assert await get(page, t="a") == lost
            assert await delivered(server) == 0
            await upgrade.send("5")
            await eventually(
                lambda: server.windows("alice")[0].session.transport is not None
            )
            assert await delivered(server) == 1


async def test_the_last_response_of_a_closed_session_is_repeated(
    server: RunningServer,
) -> None:
    """It says why the window was closed."""
    async with raw_poller(server) as page:
        await page.join("alice")
        server.io.kick("alice")
        last = await get(page, t="a")
        assert last[-1] == "41"

        assert await get(page, t="a") == last

        with pytest.raises(AssertionError, match="closed"):
            await get(page, t="b")


async def test_messages_of_an_unproven_response_go_to_a_new_window(
    server: RunningServer,
) -> None:
    """The tab was closed before it could poll again."""
    async with raw_poller(server) as page:
        await page.join("alice")
        await server.store("alice", 1)
        await get(page, t="a")
    server.cut("alice")
    async with raw_window(server) as window:
        await window.join("alice")
        events, _ = await window.synced()
    assert [event[1] for event in events] == [1]


async def test_repeats_of_an_unread_response_are_bounded() -> None:
    """Each would hold the whole response on a connection of its own."""
    async with (
        open_server(Plan(outbound_bytes=64_000_000)) as server,
        raw_poller(server) as page,
    ):
        await page.join("alice")
        await server.store("alice", *("x" * 1_000_000 for _ in range(16)))
        path = URL(page.url).update_query(t="a").raw_path_qs
        stuck = []
        for _ in range(10):
            connection = await raw_tcp(server, receive_bytes=4096).__aenter__()
            stuck.append(connection)
            await connection.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await connection.receive(1)
        sizes = [each.get_write_buffer_size() for each in server.http_connections]
        assert 0 < sum(sizes) < 20_000_000
        for connection in stuck:
            connection.socket.close()


# --- a repeated POST


async def test_a_repeated_post_is_processed_once(server: RunningServer) -> None:
    """Chromium repeats a POST as well; a second CONNECT would end the window."""
    async with raw_poller(server) as page:
        url = URL(page.url).update_query(t="p")
        body = "40" + json.dumps({"token": token()})
        for _ in range(2):
            async with page.http.post(url, data=body) as response:
                assert response.status == 200
        packets = await page.poll_until('42["bridge:sync"')
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                packets += await page.poll()
        assert not [packet for packet in packets if packet.startswith("44")]
