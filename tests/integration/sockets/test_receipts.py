"""
A page proves within a round trip that it has a message whose outcome a worker waits for.

With automatic acks a message counts as delivered after a sign of life of its page. Without an
extra ping that is the next regular pong, 25 seconds later.
"""

import pytest

from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.receipts import WorkerEvent
from tests.conftest import eventually
from tests.integration.running import python_client
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import raw_window
from tests.integration.sockets.running_server import RunningServer, message
from tests.integration.sockets.test_messages import TRANSPORTS, options


async def store_tracked(server: RunningServer, *data: object) -> None:
    """Store messages of alice that ask for a receipt."""
    messages = [message("alice", each) for each in data]
    for each in messages:
        each.options = MessageOptions(tracking=Tracking(wants_receipt=True))
    await server.inbox.append(messages)


async def outcomes(server: RunningServer, *, count: int) -> list[str]:
    """Wait for `count` events; return their routing keys."""
    found: list[WorkerEvent] = []

    async def are_there() -> bool:
        found[:] = await server.inbox.pending_events(1000)
        return len(found) >= count

    await eventually(are_there)
    return [event.routing_key for event in found]


@TRANSPORTS
async def test_a_stock_client_proves_at_once_that_it_has_a_message(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """No clock has to advance to the next regular ping."""
    await pages.connected("page", server.url, **options("alice", transport))

    await store_tracked(server, 1)

    assert await outcomes(server, count=1) == ["message.delivered"]
    await eventually(lambda: pages.data("page") == [1])


@TRANSPORTS
async def test_a_replay_is_proved_too(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """The message was stored before the page came."""
    await store_tracked(server, *range(300))

    await pages.connected("page", server.url, **options("alice", transport))

    assert await outcomes(server, count=300) == ["message.delivered"] * 300


async def test_the_python_client_proves_it_too(server: RunningServer) -> None:
    """It answers each ping as the JavaScript client does."""
    async with python_client() as client:
        await client.connect(server.url, **options("alice", "websocket"))
        await store_tracked(server, 1)
        assert await outcomes(server, count=1) == ["message.delivered"]


async def test_one_ping_is_under_way(server: RunningServer) -> None:
    """Messages that come meanwhile are proved by the next one."""
    async with raw_window(server) as window:
        await window.join("alice")
        await window.synced()
        await store_tracked(server, 1)
        await window.receive_until('42["message",1')
        assert await window.receive() == "2"
        await store_tracked(server, 2)
        await store_tracked(server, 3)
        await window.receive_until('42["message",3')

        await window.send("3")
        assert await window.receive() == "2"
        assert await outcomes(server, count=1) == ["message.delivered"]
        await window.send("3")
        assert await outcomes(server, count=3) == ["message.delivered"] * 3


async def test_nothing_else_sends_a_ping(server: RunningServer) -> None:
    """Neither messages without a receipt nor windows with manual acks."""
    async with raw_window(server) as automatic, raw_window(server) as manual:
        await automatic.join("bob")
        await automatic.synced()
        await manual.join("alice", acks="manual")
        await manual.synced()
        await server.store("bob", 1)
        await store_tracked(server, 2)
        await automatic.receive_until('42["message",1')
        await manual.receive_until('42["message",2')
        sessions = [*server.windows("alice"), *server.windows("bob")]
        assert [each.session.pong_due_s for each in sessions] == [None, None]


@pytest.mark.parametrize("count", [1, 500])
async def test_the_mark_moves_while_messages_keep_coming(
    server: RunningServer, pages: Pages, count: int
) -> None:
    """Each batch asks again as soon as the last ping was answered."""
    await pages.connected("page", server.url, **options("alice", "websocket"))
    for number in range(count):
        await store_tracked(server, number)

    assert await outcomes(server, count=count) == ["message.delivered"] * count
