"""Long polling: complete bodies, one request at a time, and the upgrade to a WebSocket."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from bridge.sockets.engineio.session import EngineSession
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import (
    SEPARATOR,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.security import http_session
from tests.integration.sockets.test_messages import options
from tests.tokens import token


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client."""
    async with http_session() as http:
        yield http


def is_polled(session: EngineSession) -> bool:
    """Return whether a poll is pending."""
    return session._queue is not None and session._queue.is_polled


# --- bodies


@pytest.mark.parametrize("size", [60_000, 200_000, 600_000, 999_900])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_up_to_the_limit_is_read_completely(
    http: aiohttp.ClientSession, size: int, *, chunked: bool
) -> None:
    """python-engineio reads only the first chunk and answers "OK"."""

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7001):
            yield body[start : start + 7001]

    async with (
        open_server(Plan(max_event_bytes=1_000_000)) as server,
        raw_poller(server) as page,
    ):
        await page.join("alice", acks="manual")
        # Long white space, then an argument whose arrival shows in the reply.
        body = f'421["ack",{" " * size}"x"]'.encode()
        data = pieces(body) if chunked else body
        async with http.post(page.url, data=data) as response:
            assert response.status == 200
        (answer,) = await page.poll()
    assert '"bad_position"' in answer


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused(
    server: RunningServer, *, chunked: bool
) -> None:
    """Its session is closed: no valid client sends it."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    async with raw_poller(server) as page:
        await page.join("alice")
        data = pieces() if chunked else b"x" * 16_385
        async with page.http.post(page.url, data=data) as response:
            assert response.status == 413
        assert not server.windows("alice")


async def test_more_than_16_packets_in_one_body_are_all_processed(
    server: RunningServer,
) -> None:
    """python-engineio drops all of them and answers "OK"."""
    async with raw_poller(server) as page:
        await page.join("alice", acks="manual")
        await page.post(*(f'42{number}["ack","x"]' for number in range(100)))
        answers: list[str] = []
        while len(answers) < 100:
            answers += await page.poll()

    assert [answer.partition("[")[0] for answer in answers] == [
        f"43{number}" for number in range(100)
    ]


async def test_a_body_that_never_ends_is_refused_at_its_deadline() -> None:
    """Aiohttp has no deadline for bodies."""
    async with open_server(Plan(connect_s=0.2)) as server, raw_poller(server) as page:
        await page.post("40" + json.dumps({"token": token()}))
        await page.poll_until('42["bridge:sync"')
        async with raw_tcp(server) as connection:
            await connection.send(
                f"POST {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n"
                "Content-Length: 1000\r\n\r\nabc".encode()
            )
            assert b" 400 " in await connection.receive_until(b"\r\n\r\n")
        await eventually(lambda: not server.windows("alice"))


async def test_a_body_whose_session_was_closed_causes_no_error(
    server: RunningServer,
) -> None:
    """python-engineio raises, because its response depends on the session."""
    async with raw_poller(server) as page, raw_tcp(server) as connection:
        await page.join("alice")
        await connection.send(
            f"POST {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 100000\r\n\r\nabc".encode()
        )
        (window,) = server.windows("alice")
        await eventually(lambda: window.session._is_posting)
        server.cut("alice")
        server.tick(later_s=5)
        assert not server.sessions()

        await connection.send(b"x" * 99_997)

        assert (await connection.receive()).startswith(b"HTTP/1.1 ")


async def test_a_truncated_body_causes_no_error(server: RunningServer) -> None:
    """A phone loses its network."""
    async with raw_poller(server) as page:
        await page.join("alice")
        async with raw_tcp(server) as connection:
            await connection.send(
                f"POST {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n"
                "Content-Length: 1000\r\n\r\nabc".encode()
            )
            (window,) = server.windows("alice")
            await eventually(lambda: window.session._is_posting)
        await eventually(lambda: window.session.is_closed)


async def test_a_body_that_cannot_be_decompressed_causes_no_error(
    server: RunningServer,
) -> None:
    """Any client can send one, and tracebacks would fill the log."""
    async with raw_poller(server) as page:
        await page.join("alice")
        packed = {"Content-Encoding": "gzip"}
        async with page.http.post(page.url, data=b"not so", headers=packed) as response:
            assert response.status == 400
        assert not server.windows("alice")


@pytest.mark.parametrize("body", [b"\xff\xfe", b"", b"\x1e", b"\x00", b"d=42[]"])
async def test_a_body_without_valid_packets_closes_the_session(
    server: RunningServer, body: bytes
) -> None:
    """No exception is logged, and other sessions stay."""
    async with raw_poller(server) as page, raw_window(server) as neighbour:
        await neighbour.join("alice")
        await neighbour.synced()
        await page.join("bob")
        async with page.http.post(page.url, data=body) as response:
            assert response.status in {200, 400}
        await eventually(lambda: not server.windows("bob"))
        assert len(server.windows("alice")) == 1


async def test_a_post_to_a_closed_session_causes_no_error(
    server: RunningServer,
) -> None:
    """The session stays for a moment for its last poll; python-engineio raises KeyError."""
    async with raw_poller(server) as page:
        await page.join("alice")
        server.io.kick("alice")

        assert await page.post("3") in {200, 400}

        packets = await page.poll()
        assert any('"kicked"' in packet for packet in packets)
        assert packets[-1] == "41"
        with pytest.raises(AssertionError, match="closed"):
            await page.poll()


async def test_two_concurrent_polls_close_the_session(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    """They would split the messages between them. The stock client reconnects."""
    async with raw_poller(server) as page:
        await page.join("alice")
        first = asyncio.create_task(page.poll())
        (window,) = server.windows("alice")
        await eventually(lambda: is_polled(window.session))

        async with http.get(page.url) as response:
            assert response.status == 400

        assert await first == ["1"]
        with pytest.raises(AssertionError, match="closed"):
            await page.poll()
        assert not server.windows("alice")


async def test_a_client_that_closes_its_session_gets_the_end_of_its_poll(
    server: RunningServer,
) -> None:
    """A pending poll returns, and later ones are refused."""
    async with raw_poller(server) as page:
        await page.join("alice")
        poll = asyncio.create_task(page.poll())
        (window,) = server.windows("alice")
        await eventually(lambda: is_polled(window.session))

        assert await page.post("1") == 200

        assert await poll == ["6"]
        with pytest.raises(AssertionError, match="closed"):
            await page.poll()


async def test_a_poll_after_a_missing_pong_is_refused(server: RunningServer) -> None:
    """The client must connect again, and does not learn it from an old ping."""
    async with raw_poller(server) as page:
        await page.join("alice")
        server.tick(later_s=26)
        server.tick(later_s=47)
        with pytest.raises(AssertionError, match="closed"):
            await page.poll()


async def test_two_concurrent_posts_close_the_session(server: RunningServer) -> None:
    """A client has one POST at a time; thousands of incomplete bodies would use memory."""
    async with raw_poller(server) as page, raw_tcp(server) as connection:
        await page.join("alice")
        await connection.send(
            f"POST {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 1000\r\n\r\nabc".encode()
        )
        (window,) = server.windows("alice")
        await eventually(lambda: window.session._is_posting)

        assert await page.post("3") == 400

        assert not server.windows("alice")


# --- upgrade


async def test_a_session_has_at_most_one_websocket(server: RunningServer) -> None:
    """
    More would not be counted by any limit, and the first one would never be closed.

    A hostile client knows its own session id and could open any number with it.
    """
    async with raw_poller(server) as page:
        await page.join("alice")
        async with raw_window(server, sid=page.sid) as first:
            await first.send("2probe")
            assert await first.receive() == "3probe"
            async with raw_window(server, sid=page.sid) as second:
                assert (await second.ended())[0] == []
            await first.send("5")
            await server.store("alice", 1)
            assert '42["message",1' in await first.receive()
            async with raw_window(server, sid=page.sid) as third:
                assert (await third.ended())[0] == []


@pytest.mark.parametrize("answer", ["nonsense", "2", "42[]", None])
async def test_a_failed_upgrade_leaves_the_polling_session_open(
    server: RunningServer, answer: str | None
) -> None:
    """As behind a proxy that forwards the handshake and nothing else."""
    async with raw_poller(server) as page:
        await page.join("alice")
        async with raw_window(server, sid=page.sid) as upgrade:
            if answer:
                await upgrade.send(answer)
                await upgrade.ended()
            else:
                await upgrade.websocket.close()
        await server.store("alice", 1)
        assert '42["message",1' in (await page.poll_until('42["message"'))[-1]


async def test_queued_messages_go_over_the_websocket_first_and_in_order(
    server: RunningServer,
) -> None:
    """The packets of the polling queue are written before any new one."""
    async with raw_poller(server) as page:
        await page.join("alice")
        await server.store_numbers("alice", start=0, stop=30)
        async with raw_window(server, sid=page.sid) as window:
            await window.send("2probe")
            assert await window.receive() == "3probe"
            await server.store_numbers("alice", start=30, stop=40)
            await window.send("5")
            (session,) = server.sessions()
            await eventually(lambda: session.transport_name == "websocket")
            await server.store_numbers("alice", start=40, stop=50)
            got = [json.loads((await window.receive())[2:])[1] for _ in range(50)]
        assert got == list(range(50))
        assert (await server.inbox.state("alice")).delivered == 50


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_session_ids_start_with_the_name_of_the_bridge(
    pages: Pages, transport: str
) -> None:
    """A load balancer routes polls and upgrades by it."""
    async with open_server(Plan(name="bridge-1")) as server:
        await pages.connected(
            "page", server.url, **options("alice", transport, "websocket")
        )
        await server.store("alice", 1)
        await pages.until("page", "event", "message")

        (session,) = server.sessions()
        assert re.fullmatch(r"bridge-1\.[\w-]{20}", session.sid)


def test_the_separator_cannot_occur_in_a_message() -> None:
    """JSON escapes it, so a response is split only between packets."""
    assert SEPARATOR not in json.dumps({"a": SEPARATOR})
