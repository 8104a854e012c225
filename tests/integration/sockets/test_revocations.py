"""Revoked tokens: at a connect, at a refresh, and on open windows."""

import asyncio
import json
import time

import pytest

from bridge.core.replay import InboxState
from bridge.core.revocation import Revocation
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.running_server import RunningServer, open_server
from tests.integration.sockets.test_messages import TRANSPORTS, options
from tests.integration.sockets.test_stock_clients import python_page
from tests.tokens import token


class StoreWithPauses(MemoryInbox):
    """A store whose reads of the state wait, or fail, as the test says."""

    def __init__(self) -> None:
        super().__init__(Retention(1000, max_age_s=3600, dedupe_s=600))
        self.is_away = False
        self.reading = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def state(self, user: str) -> InboxState:
        """Return the state as of the call, after the test allows it."""
        state = await super().state(user)
        self.reading.set()
        await self.may_answer.wait()
        if self.is_away:
            raise StoreUnavailableError("memory:", "it is away")
        return state


def revocation(
    user: str = "alice", *, jti: str | None = None, issued_before_s: float | None = None
) -> Revocation:
    """Return a revocation for an hour."""
    now_s = time.time()
    return Revocation(user, now_s + 3600, issued_before_s, jti, made_s=now_s)


@TRANSPORTS
async def test_the_stock_client_is_notified_and_does_not_reconnect(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """Only windows with a revoked token are closed."""
    for name in ("one", "two", "bob"):
        user = "bob" if name == "bob" else "alice"
        auth = {"token": token(sub=user, jti=name)}
        more = options(user, transport) | {"auth": auth}
        await pages.connected(name, server.url, **more)

    await server.inbox.revoke(revocation(jti="one"))
    (closing,) = await pages.until("one", "event", "bridge:closing")
    assert await pages.until("one", "disconnect") == ["io server disconnect"]
    await server.store("alice", "still here")
    await pages.until("two", "event", "message")

    await server.inbox.revoke(revocation())
    await pages.until("two", "event", "bridge:closing")
    await server.store("bob", "still here")
    await pages.until("bob", "event", "message")

    assert (closing["code"], closing["reconnect"]) == ("revoked", False)
    assert closing["reason"]
    assert pages.data("one") == []
    assert len(pages.all("one", "connect")) == 1
    assert server.count("windows_closed_total", code="revoked") == 2


async def test_python_socketio_is_notified_and_does_not_reconnect(
    server: RunningServer,
) -> None:
    """The client of other back ends."""
    connects: list[None] = []
    async with python_page("async", server.url) as page:
        page.on("connect", lambda: connects.append(None))
        await page.connect(["websocket"])
        await eventually(lambda: page.syncs)
        await server.inbox.revoke(revocation())
        await eventually(lambda: page.notices and not page.is_connected)

    assert (page.notices[0]["code"], page.notices[0]["reconnect"]) == ("revoked", False)
    assert len(connects) == 1


@TRANSPORTS
async def test_a_revoked_token_is_refused(
    server: RunningServer, transport: str
) -> None:
    """A token is remembered once it was verified, so it is tried before and after."""
    given = token(jti="7")

    async def connect() -> dict[str, object] | None:
        packet = "40" + json.dumps({"token": given})
        if transport == "websocket":
            async with raw_window(server) as window:
                await window.send(packet)
                answer = (await window.receive_until("4"))[-1]
        else:
            async with raw_poller(server) as page:
                await page.post(packet)
                packets = await page.poll_until("4")
                answer = next(each for each in packets if each.startswith("4"))
        is_admitted = answer.startswith("40")
        return None if is_admitted else dict(json.loads(answer[2:])["data"])

    assert await connect() is None
    await server.inbox.revoke(revocation(jti="7"))

    assert await connect() == {"code": "token_revoked", "temporary": False}
    assert server.count("windows_refused_total", code="token_revoked") == 1


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"iat": 100}, "token_revoked"),
        ({"iat": 200}, None),
        ({}, "token_revoked"),  # it may have been issued at any time
        ({"iat": "100"}, "token_revoked"),
    ],
)
async def test_tokens_issued_before_a_time_are_refused(
    server: RunningServer, claims: dict[str, object], code: str | None
) -> None:
    """A token without `iat` is refused: that is the safe reading."""
    await server.inbox.revoke(revocation(issued_before_s=150))

    async with raw_window(server) as window:
        answer = await window.connect(token=token(**claims))

    found = None if answer.startswith("40") else json.loads(answer[2:])["data"]["code"]
    assert found == code


async def test_a_window_that_connects_during_a_revocation_is_not_missed() -> None:
    """
    The revocation is stored after the window's state was read and before it joins.

    It finds no window to close, so the admission must find it.
    """
    store = StoreWithPauses()
    async with open_server(inbox=store) as server, raw_window(server) as window:
        store.may_answer.clear()
        connecting = asyncio.create_task(window.connect(token=token()))
        await store.reading.wait()

        await store.revoke(revocation())
        store.may_answer.set()
        answer = await connecting

        assert json.loads(answer[2:])["data"]["code"] == "token_revoked"
        assert not server.windows("alice")


async def test_a_refresh_with_a_revoked_token_is_refused() -> None:
    """The old token stays in effect: also if the new one is revoked during the refresh."""
    store = StoreWithPauses()
    async with open_server(inbox=store) as server, raw_window(server) as window:
        await window.connect(token=token(jti="old"))
        await window.synced()
        await store.revoke(revocation(jti="new 1"))
        await window.emit("bridge:refresh", token(jti="new 1"), packet_id=1)
        refused = [await window.answer(1)]

        store.reading.clear()
        store.may_answer.clear()
        await window.emit("bridge:refresh", token(jti="new 2"), packet_id=2)
        await store.reading.wait()
        await store.revoke(revocation(jti="new 2"))
        store.may_answer.set()
        refused.append(await window.answer(2))

        await window.emit("bridge:refresh", token(jti="new 3"), packet_id=3)
        assert (await window.answer(3))["ok"] is True
        await store.revoke(revocation(jti="old"))  # it is in use no more
        assert len(server.windows("alice")) == 1
        await store.revoke(revocation(jti="new 3"))
        assert not server.windows("alice")

    codes = [(each["ok"], each["code"]) for each in refused]
    assert codes == [(False, "token_revoked")] * 2


async def test_nothing_is_admitted_unchecked_while_the_store_is_away() -> None:
    """Neither a window nor a new token: revocations may be unknown here."""
    store = StoreWithPauses()
    async with (
        open_server(inbox=store) as server,
        raw_window(server) as window,
        raw_window(server) as late,
    ):
        await window.connect(token=token())
        await window.synced()
        store.is_away = True

        answer = await late.connect(token=token())
        await window.emit("bridge:refresh", token(), packet_id=1)
        reply = await window.answer(1)

        assert json.loads(answer[2:])["data"] == {
            "code": "not_available",
            "temporary": True,
        }
        assert (reply["ok"], reply["code"]) == (False, "not_available")
        assert len(server.windows("alice")) == 1


async def test_a_window_receives_nothing_after_a_revocation(
    server: RunningServer,
) -> None:
    """Messages before it arrive; the notice is the last event."""
    async with raw_window(server) as window:
        await window.connect(token=token())
        await window.synced()
        await server.store_numbers("alice", start=0, stop=3)
        await server.inbox.revoke(revocation())
        await server.store_numbers("alice", start=3, stop=6)
        packets, _ = await window.ended()

    events = [json.loads(each[2:]) for each in packets if each.startswith("42")]
    assert [event[1] for event in events[:-1]] == [0, 1, 2]
    assert events[-1][0] == "bridge:closing"
