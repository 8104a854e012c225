"""Long polling: whole bodies, one request at a time, and the way to a websocket."""

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
from tests.integration.sockets.listeners import Door, Plan, open_door
from tests.integration.sockets.raw_pages import (
    SEPARATOR,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.test_messages import options
from tests.tokens import token


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without any manners of its own."""
    async with aiohttp.ClientSession() as http:
        yield http


def is_polled(session: EngineSession) -> bool:
    """Whether a poll waits for something to be sent."""
    return session._queue is not None and session._queue.is_polled


# --- polling bodies


@pytest.mark.parametrize("size", [60_000, 200_000, 600_000, 999_900])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_polling_body_arrives_whole_up_to_the_bound(
    http: aiohttp.ClientSession, size: int, *, chunked: bool
) -> None:
    """The library reads one piece of it and answers "OK" (1.2, row 9)."""

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7001):
            yield body[start : start + 7001]

    async with (
        open_door(Plan(max_event_bytes=1_000_000)) as door,
        raw_poller(door) as page,
    ):
        await page.join("alice", acks="manual")
        # Long white space, then what can be seen to have arrived.
        body = f'421["ack",{" " * size}"x"]'.encode()
        data = pieces(body) if chunked else body
        async with http.post(page.url, data=data) as response:
            assert response.status == 200
        (answer,) = await page.poll()
    assert '"bad_position"' in answer


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_polling_body_over_the_bound_is_refused(
    door: Door, *, chunked: bool
) -> None:
    """And its session with it: it is no client of ours."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    async with raw_poller(door) as page:
        await page.join("alice")
        data = pieces() if chunked else b"x" * 16_385
        async with page.http.post(page.url, data=data) as response:
            assert response.status == 400
        assert not door.windows("alice")


async def test_more_than_16_packets_in_one_body_all_count(door: Door) -> None:
    """The library drops all of them and answers "OK" (1.2, row 9)."""
    async with raw_poller(door) as page:
        await page.join("alice", acks="manual")
        await page.post(*(f'42{number}["ack","x"]' for number in range(100)))
        answers: list[str] = []
        while len(answers) < 100:
            answers += await page.poll()

    assert [answer.partition("[")[0] for answer in answers] == [
        f"43{number}" for number in range(100)
    ]


async def test_a_body_that_never_ends_meets_its_deadline() -> None:
    """Aiohttp has none for bodies (1.3)."""
    async with open_door(Plan(connect_s=0.2)) as door, raw_poller(door) as page:
        await page.post("40" + json.dumps({"token": token()}))
        await page.poll_until('42["bridge:sync"')
        async with raw_tcp(door) as connection:
            await connection.send(
                f"POST {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n"
                "Content-Length: 1000\r\n\r\nabc".encode()
            )
            assert b" 400 " in await connection.receive_until(b"\r\n\r\n")
        await eventually(lambda: not door.windows("alice"))


async def test_a_body_whose_session_is_gone_meanwhile_is_no_fault(door: Door) -> None:
    """The library falls over itself: the answer depends on the session being there."""
    async with raw_poller(door) as page, raw_tcp(door) as connection:
        await page.join("alice")
        await connection.send(
            f"POST {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 100000\r\n\r\nabc".encode()
        )
        (window,) = door.windows("alice")
        await eventually(lambda: window.session._is_posting)
        door.cut("alice")
        door.tick(later_s=5)
        assert not door.sessions()

        await connection.send(b"x" * 99_997)

        assert (await connection.receive()).startswith(b"HTTP/1.1 ")


async def test_a_body_that_breaks_off_is_no_fault(door: Door) -> None:
    """A phone in a tunnel."""
    async with raw_poller(door) as page:
        await page.join("alice")
        async with raw_tcp(door) as connection:
            await connection.send(
                f"POST {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n"
                "Content-Length: 1000\r\n\r\nabc".encode()
            )
            (window,) = door.windows("alice")
            await eventually(lambda: window.session._is_posting)
        await eventually(lambda: window.session.is_closed)


async def test_a_body_that_cannot_be_unpacked_is_no_fault(door: Door) -> None:
    """Anybody can send one, and a traceback for each would be the log."""
    async with raw_poller(door) as page:
        await page.join("alice")
        packed = {"Content-Encoding": "gzip"}
        async with page.http.post(page.url, data=b"not so", headers=packed) as response:
            assert response.status == 400
        assert not door.windows("alice")


@pytest.mark.parametrize("body", [b"\xff\xfe", b"", b"\x1e", b"\x00", b"d=42[]"])
async def test_a_body_that_is_no_packets_ends_the_session(
    door: Door, body: bytes
) -> None:
    """No exception in any log; the neighbours stay."""
    async with raw_poller(door) as page, raw_window(door) as neighbour:
        await neighbour.join("alice")
        await neighbour.synced()
        await page.join("bob")
        async with page.http.post(page.url, data=body) as response:
            assert response.status in {200, 400}
        await eventually(lambda: not door.windows("bob"))
        assert len(door.windows("alice")) == 1


async def test_a_post_to_a_session_that_was_closed_is_no_fault(door: Door) -> None:
    """It is kept a moment for its last words; the library raises KeyError there."""
    async with raw_poller(door) as page:
        await page.join("alice")
        door.server.kick("alice")

        assert await page.post("3") in {200, 400}

        packets = await page.poll()
        assert any('"kicked"' in packet for packet in packets)
        assert packets[-1] == "41"
        with pytest.raises(AssertionError, match="unknown session"):
            await page.poll()


async def test_two_polls_at_a_time_end_the_session(
    door: Door, http: aiohttp.ClientSession
) -> None:
    """They would tear the messages apart; a stock client recovers from the end."""
    async with raw_poller(door) as page:
        await page.join("alice")
        first = asyncio.create_task(page.poll())
        (window,) = door.windows("alice")
        await eventually(lambda: is_polled(window.session))

        async with http.get(page.url) as response:
            assert response.status == 400

        with pytest.raises(AssertionError):
            await first
        assert not door.windows("alice")


async def test_two_posts_at_a_time_end_the_session(door: Door) -> None:
    """A page posts once at a time; thousands of open bodies would be memory."""
    async with raw_poller(door) as page, raw_tcp(door) as connection:
        await page.join("alice")
        await connection.send(
            f"POST {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 1000\r\n\r\nabc".encode()
        )
        (window,) = door.windows("alice")
        await eventually(lambda: window.session._is_posting)

        assert await page.post("3") == 400

        assert not door.windows("alice")


# --- from polling to websocket


async def test_one_session_becomes_one_websocket(door: Door) -> None:
    """
    More would not be counted by any cap, and the first one would never be closed.

    A hostile page knows its own session id, and may open as many as it likes with it.
    """
    async with raw_poller(door) as page:
        await page.join("alice")
        async with raw_window(door, sid=page.sid) as first:
            await first.send("2probe")
            assert await first.receive() == "3probe"
            with pytest.raises(aiohttp.WSServerHandshakeError):
                async with raw_window(door, sid=page.sid):
                    pass


@pytest.mark.parametrize("answer", ["nonsense", "2", "42[]", None])
async def test_an_upgrade_that_goes_wrong_leaves_the_polling_session(
    door: Door, answer: str | None
) -> None:
    """As behind a proxy that lets the handshake through and nothing else."""
    async with raw_poller(door) as page:
        await page.join("alice")
        async with raw_window(door, sid=page.sid) as upgrade:
            if answer:
                await upgrade.send(answer)
                await upgrade.ended()
            else:
                await upgrade.websocket.close()
        await door.store("alice", 1)
        assert '42["message",1' in (await page.poll_until('42["message"'))[-1]


async def test_messages_that_wait_at_the_upgrade_come_first_and_in_order(
    door: Door,
) -> None:
    """What the polling queue holds goes over the websocket, before anything new."""
    async with raw_poller(door) as page:
        await page.join("alice")
        await door.store_numbers("alice", start=0, stop=30)
        async with raw_window(door, sid=page.sid) as window:
            await window.send("2probe")
            assert await window.receive() == "3probe"
            await door.store_numbers("alice", start=30, stop=40)
            await window.send("5")
            (session,) = door.sessions()
            await eventually(lambda: session.transport_name == "websocket")
            await door.store_numbers("alice", start=40, stop=50)
            got = [json.loads((await window.receive())[2:])[1] for _ in range(50)]
        assert got == list(range(50))
        assert (await door.inbox.state("alice")).delivered == 50


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_a_bridge_with_a_name_tells_it_in_its_sessions_ids(
    pages: Pages, transport: str
) -> None:
    """By that a load balancer brings each poll, and the upgrade, to the right bridge."""
    async with open_door(Plan(name="bridge-1")) as door:
        await pages.connected(
            "page", door.url, **options("alice", transport, "websocket")
        )
        await door.store("alice", 1)
        await pages.until("page", "event", "message")

        (session,) = door.sessions()
        assert re.fullmatch(r"bridge-1\.[\w-]{20}", session.sid)


def test_the_separator_cannot_stand_in_a_message() -> None:
    """JSON escapes it, so a polling answer falls apart only where it should."""
    assert SEPARATOR not in json.dumps({"a": SEPARATOR})
