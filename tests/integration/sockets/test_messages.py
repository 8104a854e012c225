"""A message stored for a user arrives in every window of the user, once and in order."""

import asyncio

import pytest

from tests.conftest import eventually
from tests.integration.running import python_client
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.running_server import RunningServer
from tests.tokens import token

TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "polling"])


def options(user: str, *transports: str) -> dict[str, object]:
    """Return the options that a page passes to `io()`."""
    return {"auth": {"token": token(sub=user)}, "transports": transports}


@TRANSPORTS
async def test_every_window_of_a_user_gets_each_message_once_and_in_order(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """Windows of other users get none of them."""
    for name in ("left", "right", "third"):
        await pages.connected(name, server.url, **options("alice", transport))
    await pages.connected("other", server.url, **options("bob", transport))

    for start in range(0, 300, 7):
        await server.store_numbers("alice", start=start, stop=min(start + 7, 300))
        await asyncio.sleep(0)
    await server.store("bob", "for bob")

    await pages.until("other", "event", "message")
    for name in ("left", "right", "third"):
        await pages.until(name, "event", "message", count=300)
        assert pages.data(name) == list(range(300))
    assert pages.data("other") == ["for bob"]


async def test_nothing_is_lost_or_repeated_during_the_upgrade_to_a_websocket(
    server: RunningServer, pages: Pages
) -> None:
    """By default the stock client starts with polling and upgrades, here under traffic."""
    names = [f"window {number}" for number in range(8)]
    for name in names:
        pages.open(name, server.url, **options("alice", "polling", "websocket"))

    stored = 0
    while len({report[0] for report in pages.reports if report[1] == "upgrade"}) < 8:
        await server.store("alice", stored)
        stored += 1
        assert stored < 10_000
        await asyncio.sleep(0.001)
    await server.store_numbers("alice", start=stored, stop=stored + 50)
    stored += 50

    for name in names:
        await eventually(lambda name=name: stored - 1 in pages.data(name))  # type: ignore[misc] # mypy does not see through the default
        got = pages.data(name)
        assert got == list(range(got[0], stored))
    assert all(
        window.session.transport_name == "websocket"
        for window in server.windows("alice")
    )
    # The first window connected to an empty inbox, so it must have every message.
    assert min(pages.data(name)[0] for name in names) == 0


@pytest.mark.parametrize(
    "transports", [["websocket"], ["polling"], ["polling", "websocket"]]
)
async def test_the_python_client_receives_messages_too(
    server: RunningServer, transports: list[str]
) -> None:
    """Services may connect as users, and `bridge tail` does."""
    got: list[object] = []
    await server.store_numbers("alice", start=0, stop=20)

    async with python_client(reconnection=False) as client:
        client.on("message", lambda data, _position: got.append(data))
        await client.connect(
            server.url, auth={"token": token(sub="alice")}, transports=transports
        )
        await server.store_numbers("alice", start=20, stop=60)
        await eventually(lambda: len(got) >= 60)

    assert got == list(range(60))
    await eventually(lambda: not server.windows("alice"))


async def test_a_message_keeps_its_event_name_and_its_data(
    server: RunningServer, pages: Pages
) -> None:
    """The data is copied without decoding: any JSON value, any size up to the limit."""
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
    await pages.connected("page", server.url, **options("alice", "websocket"))

    for value in values:
        await server.store("alice", value, event='order "shipped" é')

    await pages.until("page", "event", 'order "shipped" é', count=len(values))
    assert pages.data("page", 'order "shipped" é') == values


async def test_a_position_is_always_the_last_argument(
    server: RunningServer, pages: Pages
) -> None:
    """The stock client recovers by it, and `ack` takes it."""
    await pages.connected("page", server.url, **options("alice", "websocket"))

    await server.store("alice", "a", "b")

    await pages.until("page", "event", "message", count=2)
    first, second = pages.positions("page")
    assert first != second
    assert first.rpartition("-")[0] == second.rpartition("-")[0]
