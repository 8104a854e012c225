"""The delivered mark: moved by a sign of life, by a poll, or by a manual ack."""

import asyncio
import json

import pytest

from tests.conftest import eventually
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.running_server import (
    Plan,
    RunningServer,
    open_server,
)
from tests.integration.sockets.security import WITHOUT_AND_WITH_TLS
from tests.integration.sockets.test_polling import is_polled
from tests.tokens import token

pytestmark = WITHOUT_AND_WITH_TLS

# --- the delivered mark


async def test_a_new_window_gets_the_messages_above_the_delivered_mark(
    server: RunningServer,
) -> None:
    """The page closes its connection when it reloads, so a reload repeats nothing."""
    await server.store("alice", "waited")
    async with raw_window(server) as window:
        await window.join("alice")
        events, _ = await window.synced()
        assert [event[1] for event in events] == ["waited"]
        await server.store("alice", "live")
        await window.receive_until('42["message","live"')
    await eventually(lambda: not server.windows("alice"))
    await server.store("alice", "while away")

    async with raw_window(server) as window:
        await window.join("alice")
        events, _ = await window.synced()

    assert [event[1] for event in events] == ["while away"]


async def test_with_manual_acks_only_an_ack_delivers(server: RunningServer) -> None:
    """An ack is cumulative. Messages after it are sent again."""
    await server.store_numbers("alice", start=0, stop=5)
    async with raw_window(server) as window:
        await window.join("alice", acks="manual")
        events, _ = await window.synced()
        await window.emit("ack", events[2][-1], packet_id=7)
        assert await window.answer(7) == {"ok": True}
        await window.emit(
            "ack", events[0][-1], packet_id=8
        )  # a lower position has no effect
        assert await window.answer(8) == {"ok": True}
    await eventually(lambda: not server.windows("alice"))

    async with raw_window(server) as window:
        await window.join("alice", acks="manual")
        events, _ = await window.synced()

    assert [event[1] for event in events] == [3, 4]


async def test_an_ack_that_is_repeated_is_recorded_once(server: RunningServer) -> None:
    """A page could fill the bounded record of all users, and cause a write per second."""
    await server.store_numbers("alice", start=0, stop=2)
    async with raw_window(server) as window:
        await window.join("alice", acks="manual")
        events, _ = await window.synced()
        for packet_id in range(20):
            position = events[packet_id % 2][-1]
            await window.emit("ack", position, packet_id=packet_id)
            assert await window.answer(packet_id) == {"ok": True}

    assert list(server.io.rooms.journal._delivered.offsets) == [1, 2]


async def test_a_window_with_manual_acks_does_not_delay_the_others(
    server: RunningServer,
) -> None:
    """The mark belongs to the user: any window with automatic acks moves it."""
    async with raw_window(server) as manual, raw_window(server) as automatic:
        await manual.join("alice", acks="manual")
        await manual.synced()
        await server.store("alice", 1)
        await manual.receive_until('42["message"')
        assert (await server.inbox.state("alice")).delivered == 0
        await automatic.join("alice")
        await automatic.synced()
        await automatic.send("3")
        await eventually(lambda: server.windows("alice")[1]._delivered == 1)
        assert (await server.inbox.state("alice")).delivered == 1


@pytest.mark.parametrize(
    "position",
    ["", "nonsense", None, 7, [], {}, "a-1", "-", "\x00", "0" * 100, True],
    ids=ascii,
)
async def test_an_ack_without_a_valid_position_is_refused_with_a_code(
    server: RunningServer, position: object
) -> None:
    """The mark does not move, and the reply holds the reason."""
    await server.store("alice", 1)
    async with raw_window(server) as window:
        await window.join("alice", acks="manual")
        await window.synced()
        await window.emit("ack", position, packet_id=1)
        answer = await window.answer(1)

    assert (answer["ok"], answer["code"]) == (False, "bad_position")
    assert (await server.inbox.state("alice")).delivered == 0


async def test_an_ack_of_a_foreign_or_future_position_is_refused(
    server: RunningServer,
) -> None:
    """Of another user, of another store, or of a message that this window has not received."""
    await server.store("alice", 1)
    await server.store("bob", 1, 2)
    async with raw_window(server) as alice, raw_window(server) as bob:
        await alice.join("alice", acks="manual")
        mine, _ = await alice.synced()
        await bob.join("bob", acks="manual")
        foreign, _ = await bob.synced()
        epoch, _, offset = mine[0][-1].rpartition("-")
        bad = [foreign[0][-1], f"{epoch}-{int(offset) + 1}", f"zz{epoch[2:]}-1"]
        for number, position in enumerate(bad):
            await alice.emit("ack", position, packet_id=number)
            assert (await alice.answer(number))["code"] == "bad_position"
        await alice.emit("ack", packet_id=9)
        assert (await alice.answer(9))["code"] == "bad_position"

    assert (await server.inbox.state("alice")).delivered == 0


async def test_an_ack_without_manual_acks_is_refused(server: RunningServer) -> None:
    """It has no effect; the refusal tells the author of the page."""
    async with raw_window(server) as window:
        await window.join("alice")
        await window.emit("ack", "x-1", packet_id=1)
        assert (await window.answer(1))["code"] == "not_manual"


async def test_a_window_may_ack_during_its_replay() -> None:
    """A long replay takes as long as the client reads."""
    async with (
        open_server(Plan(outbound_bytes=40_000)) as server,
        raw_poller(server) as page,
    ):
        await server.store("alice", *("x" * 100 for _ in range(1000)))
        await page.post("40" + json.dumps({"acks": "manual", "token": token()}))
        packets = await page.poll_until("42")
        position = packets[-1].rpartition('"')[0].rpartition('"')[2]
        assert await page.post(f'421["ack","{position}"]') == 200

        answers = await page.poll_until("431")

        assert any(packet == '431[{"ok":true}]' for packet in answers)
        assert (await server.inbox.state("alice")).delivered > 0


async def test_a_polled_message_is_delivered_with_the_next_poll(
    server: RunningServer,
) -> None:
    """Only the next poll proves that the response with the message has arrived."""
    async with raw_poller(server) as page:
        await page.join("alice")
        await server.store("alice", 1)
        await page.poll()
        assert (await server.inbox.state("alice")).delivered == 0
        await server.store("alice", 2)

        await page.poll()

        assert (await server.inbox.state("alice")).delivered == 1


async def test_a_poll_that_was_aborted_delivers_nothing(
    server: RunningServer,
) -> None:
    """A tab was closed during its poll: the next window gets the message."""
    async with raw_poller(server) as page:
        await page.join("alice")
        poll = asyncio.create_task(page.poll())
        (window,) = server.windows("alice")
        await eventually(lambda: is_polled(window.session))
        poll.cancel()
        await asyncio.wait({poll})
    await eventually(lambda: server.connection_count == 0)

    await server.store("alice", 1)

    await eventually(lambda: not server.windows("alice"))
    assert (await server.inbox.state("alice")).delivered == 0
