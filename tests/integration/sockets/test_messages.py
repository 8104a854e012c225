"""The main job: what is stored for a user arrives in every window, once, in order."""

import asyncio

import pytest
import socketio

from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.listeners import Door
from tests.tokens import token

TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "polling"])


def options(user: str, *transports: str) -> dict[str, object]:
    """Return what a page passes to `io()`."""
    return {"auth": {"token": token(sub=user)}, "transports": transports}


@TRANSPORTS
async def test_every_window_of_a_user_gets_each_message_once_and_in_order(
    door: Door, pages: Pages, transport: str
) -> None:
    """What the bridge is for; and no window of another user gets any of it."""
    for name in ("left", "right", "third"):
        await pages.connected(name, door.url, **options("alice", transport))
    await pages.connected("other", door.url, **options("bob", transport))

    for start in range(0, 300, 7):
        await door.store_numbers("alice", start=start, stop=min(start + 7, 300))
        await asyncio.sleep(0)
    await door.store("bob", "for bob")

    await pages.until("other", "event", "message")
    for name in ("left", "right", "third"):
        await pages.until(name, "event", "message", count=300)
        assert pages.data(name) == list(range(300))
    assert pages.data("other") == ["for bob"]


async def test_nothing_is_lost_or_repeated_while_polling_becomes_a_websocket(
    door: Door, pages: Pages
) -> None:
    """The stock client's default: it begins with polling and upgrades under traffic."""
    names = [f"window {number}" for number in range(8)]
    for name in names:
        pages.open(name, door.url, **options("alice", "polling", "websocket"))

    stored = 0
    while len({report[0] for report in pages.reports if report[1] == "upgrade"}) < 8:
        await door.store("alice", stored)
        stored += 1
        assert stored < 10_000
        await asyncio.sleep(0.001)
    await door.store_numbers("alice", start=stored, stop=stored + 50)
    stored += 50

    for name in names:
        await eventually(lambda name=name: stored - 1 in pages.data(name))  # type: ignore[misc] # mypy does not see through the default
        got = pages.data(name)
        assert got == list(range(got[0], stored))
    assert all(
        window.session.transport_name == "websocket" for window in door.windows("alice")
    )
    # The first window found the inbox empty, so nothing at all may be missing there.
    assert min(pages.data(name)[0] for name in names) == 0


@pytest.mark.parametrize(
    "transports", [["websocket"], ["polling"], ["polling", "websocket"]]
)
async def test_the_python_client_gets_them_too(
    door: Door, transports: list[str]
) -> None:
    """Services listen as users as well; and `bridge tail` does."""
    got: list[object] = []
    client = socketio.AsyncClient(reconnection=False)
    client.on("message", lambda data, _position: got.append(data))
    await door.store_numbers("alice", start=0, stop=20)

    await client.connect(
        door.url, auth={"token": token(sub="alice")}, transports=transports
    )
    try:
        await door.store_numbers("alice", start=20, stop=60)
        await eventually(lambda: len(got) >= 60)
    finally:
        await client.disconnect()

    assert got == list(range(60))
    await eventually(lambda: not door.windows("alice"))


async def test_a_message_keeps_its_name_and_its_bytes(door: Door, pages: Pages) -> None:
    """The data is spliced in unread: any JSON value, any size up to the bound."""
    values: list[object] = [
        None,
        True,
        0,
        -1.5,
        "",
        "\u2028 \x00 😀",
        [],
        {},
        {"a": [1, {"b": None}]},
    ]
    values.append("x" * 70_000)
    await pages.connected("page", door.url, **options("alice", "websocket"))

    for value in values:
        await door.store("alice", value, event='order "shipped" é')

    await pages.until("page", "event", 'order "shipped" é', count=len(values))
    assert pages.data("page", 'order "shipped" é') == values


async def test_a_position_is_always_the_last_argument(door: Door, pages: Pages) -> None:
    """It is what makes the stock client recover, and what `ack` takes."""
    await pages.connected("page", door.url, **options("alice", "websocket"))

    await door.store("alice", "a", "b")

    await pages.until("page", "event", "message", count=2)
    first, second = pages.positions("page")
    assert first != second
    assert first.rpartition("-")[0] == second.rpartition("-")[0]
