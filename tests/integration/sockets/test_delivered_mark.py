"""What counts as delivered: written to a window, or acked by a page that wants to say so itself."""

import asyncio
import json

import pytest

from tests.conftest import eventually
from tests.integration.sockets.listeners import (
    Door,
    Plan,
    open_door,
)
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.test_polling import is_polled
from tests.tokens import token

# --- the delivered mark


async def test_a_fresh_page_gets_what_its_user_has_not_had(door: Door) -> None:
    """Written to one window counts as delivered, so a reload repeats nothing."""
    await door.store("alice", "waited")
    async with raw_window(door) as window:
        await window.join("alice")
        events, _ = await window.synced()
        assert [event[1] for event in events] == ["waited"]
        await door.store("alice", "live")
        await window.receive_until('42["message","live"')
    await eventually(lambda: not door.windows("alice"))
    await door.store("alice", "while away")

    async with raw_window(door) as window:
        await window.join("alice")
        events, _ = await window.synced()

    assert [event[1] for event in events] == ["while away"]


async def test_with_manual_acks_only_the_ack_counts(door: Door) -> None:
    """Cumulative: up to the position, and what lies behind it comes again."""
    await door.store_numbers("alice", start=0, stop=5)
    async with raw_window(door) as window:
        await window.join("alice", acks="manual")
        events, _ = await window.synced()
        await window.emit("ack", events[2][-1], packet_id=7)
        assert await window.answer(7) == {"ok": True}
        await window.emit("ack", events[0][-1], packet_id=8)  # backwards: no effect
        assert await window.answer(8) == {"ok": True}
    await eventually(lambda: not door.windows("alice"))

    async with raw_window(door) as window:
        await window.join("alice", acks="manual")
        events, _ = await window.synced()

    assert [event[1] for event in events] == [3, 4]


async def test_a_manual_window_does_not_hinder_an_automatic_one(door: Door) -> None:
    """The mark is the user's: written to any automatic window is delivered."""
    async with raw_window(door) as manual, raw_window(door) as automatic:
        await manual.join("alice", acks="manual")
        await manual.synced()
        await door.store("alice", 1)
        await manual.receive_until('42["message"')
        assert (await door.inbox.state("alice")).delivered == 0
        await automatic.join("alice")
        await automatic.synced()
        assert (await door.inbox.state("alice")).delivered == 1


@pytest.mark.parametrize(
    "position",
    ["", "nonsense", None, 7, [], {}, "a-1", "-", "\x00", "0" * 100, True],
    ids=ascii,
)
async def test_an_ack_of_no_position_is_refused_with_a_code(
    door: Door, position: object
) -> None:
    """Nothing moves, and the page learns why."""
    await door.store("alice", 1)
    async with raw_window(door) as window:
        await window.join("alice", acks="manual")
        await window.synced()
        await window.emit("ack", position, packet_id=1)
        answer = await window.answer(1)

    assert (answer["ok"], answer["code"]) == (False, "bad_position")
    assert (await door.inbox.state("alice")).delivered == 0


async def test_an_ack_of_a_foreign_or_future_position_is_refused(door: Door) -> None:
    """Another user's, another store's, one that this window has not had."""
    await door.store("alice", 1)
    await door.store("bob", 1, 2)
    async with raw_window(door) as alice, raw_window(door) as bob:
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

    assert (await door.inbox.state("alice")).delivered == 0


async def test_an_ack_without_manual_acks_is_refused(door: Door) -> None:
    """It would mean nothing, and its author should know."""
    async with raw_window(door) as window:
        await window.join("alice")
        await window.emit("ack", "x-1", packet_id=1)
        assert (await window.answer(1))["code"] == "not_manual"


async def test_a_page_may_ack_while_its_replay_still_runs() -> None:
    """A long replay takes as long as the page reads; what it has, it has."""
    async with (
        open_door(Plan(outbound_bytes=40_000)) as door,
        raw_poller(door) as page,
    ):
        await door.store("alice", *("x" * 100 for _ in range(1000)))
        await page.post("40" + json.dumps({"acks": "manual", "token": token()}))
        packets = await page.poll_until("42")
        position = packets[-1].rpartition('"')[0].rpartition('"')[2]
        assert await page.post(f'421["ack","{position}"]') == 200

        answers = await page.poll_until("431")

        assert any(packet == '431[{"ok":true}]' for packet in answers)
        assert (await door.inbox.state("alice")).delivered > 0


async def test_a_polled_message_is_delivered_when_it_is_fetched(door: Door) -> None:
    """Lying in the bridge's queue is not delivered."""
    async with raw_poller(door) as page:
        await page.join("alice")
        await door.store("alice", 1)
        assert (await door.inbox.state("alice")).delivered == 0

        await page.poll()

        assert (await door.inbox.state("alice")).delivered == 1


async def test_what_a_page_that_hung_up_would_have_fetched_is_not_delivered(
    door: Door,
) -> None:
    """A tab was closed in the middle of its poll: the next page gets the message."""
    async with raw_poller(door) as page:
        await page.join("alice")
        poll = asyncio.create_task(page.poll())
        (window,) = door.windows("alice")
        await eventually(lambda: is_polled(window.session))
        poll.cancel()
        await asyncio.wait({poll})
    await eventually(lambda: door.connection_count == 0)

    await door.store("alice", 1)

    await eventually(lambda: not door.windows("alice"))
    assert (await door.inbox.state("alice")).delivered == 0
