"""
Receipts, on every store: a worker is told exactly one final outcome of each message.

The outcomes agree with what the inbox did: `delivered` means that the delivered mark passed
the message while it was in the inbox.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bridge.core.message import Message
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.receipts import ADDRESSES_MAX, Receipt, WorkerEvent
from bridge.enums import ReceiptOutcome
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.redis.encoding import tag_of
from bridge.inbox.worker_events import render_event
from tests.conftest import SLOW_FACTOR, eventually
from tests.contract.inbox.conftest import STORES, StoreUnderTest
from tests.contract.inbox.files import Clock


def tracked(
    store: StoreUnderTest,
    data: bytes = b'"x"',
    *,
    user: str = "ann",
    message_id: str | None = None,
    ttl_s: float | None = None,
    key: str | None = None,
    reply_to: str | None = None,
    undelivered_after_s: float | None = None,
    wants_receipt: bool = True,
) -> Message:
    """Return a message that asks for a receipt."""
    deadline_s = None if ttl_s is None else store.clock.now_s + ttl_s
    message = store.message(user, data, message_id=message_id, deadline_s=deadline_s)
    tracking = Tracking(
        wants_receipt=wants_receipt,
        reply_to=reply_to,
        correlation_id=reply_to and f"for {reply_to}",
        undelivered_after_s=undelivered_after_s,
    )
    message.options = MessageOptions(key=key, tracking=tracking)
    return message


async def take(store: StoreUnderTest) -> list[WorkerEvent]:
    """Take all events from the outbox, as a publisher does."""
    taken: list[WorkerEvent] = []
    while found := await store.inbox.pending_events(100):
        await store.inbox.confirm_events(found)
        taken += found
    return taken


def told(events: Sequence[WorkerEvent]) -> list[tuple[str, str | None]]:
    """Return outcome and message id of each event."""
    bodies = [orjson.loads(event.body) for event in events]
    return [(body["outcome"], body["message_id"]) for body in bodies]


async def told_after_marks(
    store: StoreUnderTest, count: int
) -> list[tuple[str, str | None]]:
    """Wait until `count` events can be taken: marks are written in the background."""
    taken: list[WorkerEvent] = []
    async with asyncio.timeout(10 * SLOW_FACTOR):
        while len(taken) < count:
            taken += await take(store)
            await asyncio.sleep(0)
    return told(taken)


# --- the outcomes


async def test_a_delivered_message(store: StoreUnderTest) -> None:
    """The mark passes it; the event says what, when and after what time."""
    message = tracked(store, message_id="m1", reply_to="answers")
    await store.inbox.append([message])
    assert await take(store) == []
    store.advance(2.5)

    store.inbox.mark_delivered("ann", 1)

    events: list[WorkerEvent] = []
    async with asyncio.timeout(10 * SLOW_FACTOR):
        while not events:
            events = await take(store)
    (event,) = events
    assert orjson.loads(event.body) == {
        "message_id": "m1",
        "user": "ann",
        "event": "message",
        "outcome": "delivered",
        "at": "1970-01-12T13:46:42.500000+00:00",
        "delay_ms": 2500,
    }
    assert event.routing_key == "message.delivered"
    assert (event.user, event.reply_to) == ("ann", "answers")
    assert event.correlation_id == "for answers"
    assert await take(store) == []


async def test_a_mark_passes_some_messages(store: StoreUnderTest) -> None:
    """Their outcomes come in the order of the messages; the others wait."""
    await store.inbox.append(
        [tracked(store, message_id=f"m{number}") for number in range(1, 6)]
    )

    store.inbox.mark_delivered("ann", 3)

    assert await told_after_marks(store, 3) == [
        ("delivered", f"m{number}") for number in (1, 2, 3)
    ]
    store.inbox.mark_delivered("ann", 5)
    assert await told_after_marks(store, 2) == [
        ("delivered", "m4"),
        ("delivered", "m5"),
    ]


async def test_the_ids_of_events(store: StoreUnderTest) -> None:
    """All about one message begin alike, and differ from those about any other one."""
    same = tracked(store, undelivered_after_s=45)
    await store.inbox.append([same, replace(same), replace(same, user="bob")])
    await store.inbox.append([replace(same)])
    store.advance(50)
    events = await take(store)
    for user, offset in (("ann", 3), ("bob", 1)):
        store.inbox.mark_delivered(user, offset)

    async with asyncio.timeout(10 * SLOW_FACTOR):
        while len(events) < 8:
            events += await take(store)
            await asyncio.sleep(0)

    by_start: dict[str, set[str]] = {}
    for event in events:
        start, _, outcome = event.id.partition(".")
        by_start.setdefault(start, set()).add(outcome)
    assert list(by_start.values()) == [{"undelivered", "delivered"}] * 4


async def test_messages_without_tracking_have_no_outcome(store: StoreUnderTest) -> None:
    """They may be between others."""
    plain = store.message("ann", b"1", message_id="plain")
    await store.inbox.append([plain, tracked(store, message_id="m2")])
    await store.append("ann", b"3")

    store.inbox.mark_delivered("ann", 3)

    assert await told_after_marks(store, 1) == [("delivered", "m2")]


async def test_tracking_does_not_make_an_inbox_sparse(store: StoreUnderTest) -> None:
    """Only a key does."""
    await store.inbox.append([tracked(store), tracked(store)])

    state = await store.inbox.state("ann")

    assert (state.sparse_after, state.holes, state.last) == (None, 0, 2)
    assert len(await store.read_all("ann")) == 2


async def test_two_tracked_messages_without_a_key_in_a_sparse_inbox(
    store: StoreUnderTest,
) -> None:
    """They do not replace each other."""
    await store.inbox.append(
        [store.message("ann", b"1", key="k"), tracked(store), tracked(store)]
    )

    assert len(await store.read_all("ann")) == 3


async def test_a_message_expires(store: StoreUnderTest) -> None:
    """Nothing else has to happen: the passing of time decides."""
    await store.inbox.append([tracked(store, message_id="m1", ttl_s=10)])
    store.advance(9)
    assert await take(store) == []
    store.advance(2)

    assert told(await take(store)) == [("expired", "m1")]
    store.inbox.mark_delivered("ann", 1)
    await store.inbox.check()
    assert await take(store) == []


async def test_a_mark_after_the_deadline(store: StoreUnderTest) -> None:
    """A replay has left the message out, so the mark says nothing about it."""
    await store.inbox.append([tracked(store, message_id="m1", ttl_s=10)])
    store.advance(11)

    store.inbox.mark_delivered("ann", 1)

    assert await told_after_marks(store, 1) == [("expired", "m1")]
    assert await take(store) == []


async def test_a_mark_before_the_deadline_that_is_written_after_it(
    store: StoreUnderTest,
) -> None:
    """The message was delivered in time; writing the mark takes a moment."""
    await store.inbox.follow("ann")  # only users with windows have marks
    await store.inbox.append([tracked(store, message_id="m1", ttl_s=10)])
    store.advance(9)

    store.inbox.mark_delivered("ann", 1)
    store.advance(5)

    assert await told_after_marks(store, 1) == [("delivered", "m1")]
    assert await take(store) == []


async def test_a_message_over_the_limit(store: StoreUnderTest) -> None:
    """The newest 100 messages are kept."""
    await store.inbox.append(
        [tracked(store, message_id="m1"), tracked(store, message_id="m2")]
    )

    await store.append("ann", *(b"%d" % number for number in range(99)))

    events = await take(store)
    assert told(events) == [("trimmed", "m1")]
    assert orjson.loads(events[0].body)["reason"] == "limit"


async def test_a_mark_that_passes_a_trimmed_message(store: StoreUnderTest) -> None:
    """A page that never received the message moves the mark past its offset."""
    await store.inbox.append([tracked(store, message_id="m1")])
    await store.append("ann", *(b"%d" % number for number in range(100)))

    store.inbox.mark_delivered("ann", 101)

    assert await told_after_marks(store, 1) == [("trimmed", "m1")]
    await store.inbox.check()
    await store.inbox.sweep()
    assert await take(store) == []


async def test_a_delivered_message_that_is_trimmed_at_once(
    store: StoreUnderTest,
) -> None:
    """Its mark was not written yet when the next batch deleted the message."""
    await store.inbox.follow("ann")  # only users with windows have marks
    await store.inbox.append([tracked(store, message_id="m1")])

    store.inbox.mark_delivered("ann", 1)
    await store.append("ann", *(b"%d" % number for number in range(100)))

    assert await told_after_marks(store, 1) == [("delivered", "m1")]
    assert await take(store) == []


async def test_a_batch_that_is_larger_than_the_inbox(store: StoreUnderTest) -> None:
    """Its first messages are never seen by a reader."""
    await store.inbox.append(
        [tracked(store, message_id=f"m{number}") for number in range(103)]
    )

    assert told(await take(store)) == [("trimmed", f"m{number}") for number in range(3)]
    store.inbox.mark_delivered("ann", 103)
    outcomes = await told_after_marks(store, 100)
    assert {outcome for outcome, _ in outcomes} == {"delivered"}


async def test_a_message_that_is_too_old(store: StoreUnderTest) -> None:
    """A sweep finds it."""
    await store.inbox.append([tracked(store, message_id="m1")])
    store.advance(1001)

    await store.inbox.sweep()

    events = await take(store)
    assert told(events) == [("trimmed", "m1")]
    assert orjson.loads(events[0].body)["reason"] == "age"
    await store.inbox.sweep()
    assert await take(store) == []


async def test_a_mark_that_passes_a_message_that_is_too_old(
    store: StoreUnderTest,
) -> None:
    """Readers leave it out already, also before a sweep deletes it."""
    await store.inbox.append([tracked(store, message_id="m1")])
    store.advance(1001)

    store.inbox.mark_delivered("ann", 1)

    assert await told_after_marks(store, 1) == [("trimmed", "m1")]


async def test_a_replaced_message(store: StoreUnderTest) -> None:
    """By a message with or without tracking."""
    await store.inbox.append([tracked(store, message_id="m1", key="k")])
    await store.inbox.append([tracked(store, message_id="m2", key="k")])
    assert told(await take(store)) == [("replaced", "m1")]
    await store.inbox.append([store.message("ann", b"3", key="k")])
    assert told(await take(store)) == [("replaced", "m2")]

    store.inbox.mark_delivered("ann", 3)
    await store.inbox.check()
    assert await take(store) == []


async def test_a_delivered_message_that_is_replaced_at_once(
    store: StoreUnderTest,
) -> None:
    """Its mark was not written yet."""
    await store.inbox.follow("ann")  # only users with windows have marks
    await store.inbox.append([tracked(store, message_id="m1", key="k")])

    store.inbox.mark_delivered("ann", 1)
    await store.inbox.append([tracked(store, message_id="m2", key="k")])

    assert await told_after_marks(store, 1) == [("delivered", "m1")]
    store.inbox.mark_delivered("ann", 2)
    assert await told_after_marks(store, 1) == [("delivered", "m2")]


async def test_a_batch_that_replaces_its_own_message(store: StoreUnderTest) -> None:
    """The message was never in the inbox."""
    await store.inbox.append(
        [tracked(store, message_id=f"m{number}", key="k") for number in (1, 2)]
    )

    assert told(await take(store)) == [("replaced", "m1")]


async def test_the_limit_of_a_sparse_inbox(store: StoreUnderTest) -> None:
    """It counts messages, not offsets; the dense part is deleted first."""
    await store.inbox.append([tracked(store, message_id="dense")])
    await store.inbox.append(
        [tracked(store, message_id="k", key="k"), tracked(store, message_id="none")]
    )
    for number in range(98):
        await store.inbox.append([store.message("ann", b"1", key=f"key {number}")])
        await store.inbox.append([store.message("ann", b"2", key=f"key {number}")])
    # The inbox has 101 messages, if what is over the limit is not deleted at once.
    store.inbox.mark_delivered("ann", 1)
    assert await told_after_marks(store, 1) == [("trimmed", "dense")]
    await store.inbox.append([store.message("ann", b"1", key="more")])
    store.inbox.mark_delivered("ann", 3)

    assert await told_after_marks(store, 2) == [("trimmed", "k"), ("delivered", "none")]
    await store.inbox.sweep()
    assert await take(store) == []


# --- the outbox


async def test_events_stay_until_they_are_confirmed(store: StoreUnderTest) -> None:
    """The same ones in the same order, and only those that were confirmed are gone."""
    await store.inbox.append(
        [tracked(store, message_id=f"m{number}", ttl_s=1) for number in range(4)]
    )
    store.advance(2)

    found = list(await store.inbox.pending_events(3))
    again = list(await store.inbox.pending_events(3))

    assert (
        told(found) == told(again) == [("expired", f"m{number}") for number in range(3)]
    )
    assert [each.id for each in found] == [each.id for each in again]
    depth, age_s = await store.inbox.events_depth()
    assert depth == 4
    assert age_s is not None
    store.advance(7)
    assert await store.inbox.pending_events(0) == []  # while a publish is not confirmed
    assert await store.inbox.events_depth() == (4, age_s + 7)
    await store.inbox.confirm_events(found[:2])
    await store.inbox.confirm_events(found[:2])  # a repeat changes nothing
    assert told(await store.inbox.pending_events(9)) == [
        ("expired", "m2"),
        ("expired", "m3"),
    ]
    await take(store)
    assert await store.inbox.events_depth() == (0, None)


async def test_the_bodies_that_are_read_together_are_limited(
    store: StoreUnderTest,
) -> None:
    """Undelivered messages are published with their data."""
    for user in ("ann", "bob"):
        await store.inbox.append(
            [
                tracked(
                    store, b'"%s"' % (b"x" * 1000), user=user, undelivered_after_s=1
                )
                for _ in range(3)
            ]
        )
    store.advance(3)

    few = await store.inbox.pending_events(9, max_bytes=2500)
    assert 1 <= len(few) <= 2
    assert len(await store.inbox.pending_events(9, max_bytes=10)) == 1
    assert len(await take(store)) == 6


async def test_an_event_that_bridge_adds(store: StoreUnderTest) -> None:
    """It is returned as it was, after the events before it."""
    await store.inbox.append([tracked(store, message_id="m1", ttl_s=1)])
    store.advance(2)
    first = await store.inbox.pending_events(1)
    event = WorkerEvent(
        *("17.dead", "message.dead", "ann", b'{"a": 1}', store.clock.now_s),
        *("answers", "c", "m2"),
    )
    await store.inbox.add_event(event)

    found = await store.inbox.pending_events(9)

    assert told(found[:1]) == told(first)
    assert replace(found[1], key=None) == event
    await store.inbox.confirm_events(found)
    assert await take(store) == []


async def test_bridge_is_woken_for_an_event(store: StoreUnderTest) -> None:
    """So an outcome is published at once and not at the next poll."""
    woken: list[int] = []
    store.inbox.on_events(lambda: woken.append(1))
    await store.inbox.follow("ann")
    await store.inbox.append([tracked(store)])
    assert not woken

    store.inbox.mark_delivered("ann", 1)

    await eventually(lambda: len(woken) > 0)
    assert len(await take(store)) == 1


async def test_a_user_with_open_receipts_is_known(store: StoreUnderTest) -> None:
    """Its windows are asked for a sign of life at once."""
    await store.inbox.follow("ann")
    await store.inbox.append([tracked(store), store.message("bob", b"1")])
    await eventually(lambda: "ann" in store.inbox.tracked)
    assert "bob" not in store.inbox.tracked

    store.inbox.mark_delivered("ann", 1)

    assert await told_after_marks(store, 1) == [("delivered", None)]
    await eventually(lambda: "ann" not in store.inbox.tracked)


async def test_open_receipts_are_found_by_the_id(store: StoreUnderTest) -> None:
    """Until the outcome is decided; what was published already is no longer expected."""
    first = tracked(store, message_id="m1", undelivered_after_s=45, ttl_s=60)
    only_late = tracked(
        store, message_id="m2", undelivered_after_s=90, wants_receipt=False
    )
    other = tracked(store, user="bob", message_id="m1")
    await store.inbox.append([store.message("ann", b"1", message_id="m0")])
    await store.inbox.append([first, only_late, other])
    taken_s = first.taken_s

    async def open_receipts(message_id: str) -> list[tuple[object, ...]]:
        found = await store.inbox.admin.open_receipts("ann", message_id)
        return [
            (
                each.offset,
                each.tracking.wants_receipt,
                each.late_s,
                each.message.deadline_s,
            )
            for each in found
        ]

    assert await open_receipts("m0") == []
    assert await open_receipts("m1") == [(2, True, taken_s + 45, taken_s + 60)]
    assert await open_receipts("m2") == [(3, False, taken_s + 90, None)]

    store.advance(50)
    assert told(await take(store)) == [("undelivered", "m1")]
    assert await open_receipts("m1") == [(2, True, None, taken_s + 60)]

    store.inbox.mark_delivered("ann", 3)
    assert await told_after_marks(store, 1) == [("delivered", "m1")]
    assert await open_receipts("m1") == []
    assert await open_receipts("m2") == []


async def test_events_that_wait_to_be_published_are_found_by_the_message(
    store: StoreUnderTest,
) -> None:
    """While the broker takes none, an operator sees what was decided."""
    other = 'm "ü" 2'  # escaped in JSON
    late = tracked(store, message_id=other, undelivered_after_s=45)
    await store.inbox.append([tracked(store, message_id="m1"), late])
    await store.inbox.append([tracked(store, user="bob", message_id="m1")])
    store.inbox.mark_delivered("ann", 1)
    store.inbox.mark_delivered("bob", 1)
    await store.inbox.note_presence({"ann": 1}, debounce_s=15)
    store.advance(50)
    receipt = Receipt(late, 0, Tracking(wants_receipt=True), "dead")
    at_s = store.clock.now_s
    dead = render_event(receipt, ReceiptOutcome.DEAD, at_s=at_s, reason="too_large")
    await store.inbox.add_event(dead)

    async def waiting(user: str, message_id: str) -> list[tuple[str, float]]:
        events = await store.inbox.admin.waiting_events(user, message_id)
        assert events.is_complete
        return sorted((each.routing_key, each.at_s) for each in events.found)

    async def is_decided() -> bool:
        await store.inbox.pending_events(0)
        found = [await waiting("ann", "m1"), await waiting("bob", "m1")]
        return all(found) and len(await waiting("ann", other)) == 2

    await eventually(is_decided)
    for user in ("ann", "bob"):
        ((key, decided_s),) = await waiting(user, "m1")
        assert (key, decided_s <= at_s) == ("message.delivered", True)
    assert await waiting("ann", other) == [
        ("message.dead", at_s),
        ("message.undelivered", at_s),
    ]
    assert await waiting("bob", other) == await waiting("cat", "m1") == []
    await take(store)
    assert await waiting("ann", other) == []


async def test_the_search_in_memory_for_events_lets_other_tasks_run() -> None:
    """Most events wait while the broker takes none, which is when an operator searches."""
    inbox = MemoryInbox(Retention(max_messages=100, max_age_s=1000, dedupe_s=60))
    for number in range(10_001):
        fields = (f"{number}", "message.dead", "ann", b"{}", 1.0)
        await inbox.add_event(WorkerEvent(*fields, message_id=f"m{number}"))

    search = asyncio.create_task(inbox.admin.waiting_events("ann", "m10000"))
    for _ in range(2):
        await asyncio.sleep(0)
        assert not search.done()

    assert len((await search).found) == 1


@pytest.mark.parametrize("name", [name for name in STORES if name != "memory"])
async def test_receipts_survive_a_restart(
    name: str, tmp_path: Path, clock: Clock
) -> None:
    """Open ones, those whose event is not confirmed, and what duplicates need."""
    retention = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)

    async def restarted() -> StoreUnderTest:
        inbox = STORES[name](retention, clock=clock.steady, folder=tmp_path)
        await inbox.open()
        return StoreUnderTest(inbox, clock)

    store = await restarted()
    await store.inbox.append(
        [
            tracked(store, message_id="m1", ttl_s=5),
            tracked(store, b"17", message_id="m2", undelivered_after_s=7),
            tracked(store, message_id="m3", user="bob"),
        ]
    )
    store.advance(6.5)
    (expired,) = await store.inbox.pending_events(9)
    await store.inbox.close()

    store = await restarted()
    assert list(await store.inbox.pending_events(9)) == [expired]
    again = tracked(store, message_id="m1", reply_to="a")
    assert await store.inbox.append([again]) == [None]
    store.advance(2)
    await store.inbox.follow("bob")
    store.inbox.mark_delivered("bob", 1)
    await store.inbox.close()

    store = await restarted()
    events = await take(store)
    assert sorted(told(events)) == [
        *(("delivered", "m3"), ("expired", "m1"), ("expired", "m1")),
        ("undelivered", "m2"),
    ]
    assert len({each.id for each in events}) == 3
    await store.inbox.close()

    store = await restarted()
    assert await take(store) == []
    await store.append("ann", *(b"%d" % number for number in range(100)))
    assert told(await take(store)) == [("trimmed", "m2")]
    await store.inbox.close()


async def test_messages_that_expire_at_the_same_time_are_told_in_order(
    store: StoreUnderTest,
) -> None:
    """They were received together, and a worker may rely on the order of a user."""
    ids = [f"m{number}" for number in range(12)]
    batch = [tracked(store, message_id=each, ttl_s=5) for each in ids]
    await store.inbox.append(batch)
    store.advance(6)

    assert told(await take(store)) == [("expired", each) for each in ids]


# --- duplicates


async def test_a_duplicate_while_the_outcome_is_open(store: StoreUnderTest) -> None:
    """Both are told, each at its own address, by the same id."""
    first = tracked(store, message_id="m1", reply_to="a")
    await store.inbox.append([first])
    assert await store.inbox.append(
        [tracked(store, message_id="m1", reply_to="b")]
    ) == [None]
    # A redelivery, or a publish that was repeated without a confirm:
    again = tracked(store, message_id="m1", reply_to="a")
    assert await store.inbox.append([again]) == [None]
    assert await take(store) == []

    store.advance(1001)
    await store.inbox.sweep()

    events = await take(store)
    assert told(events) == [("trimmed", "m1")] * 2
    assert [each.reply_to for each in events] == ["a", "b"]
    assert len({each.id for each in events}) == 1


async def test_a_duplicate_after_the_outcome(store: StoreUnderTest) -> None:
    """It gets the outcome of the original, while its id is remembered."""
    await store.inbox.append([tracked(store, message_id="m1", ttl_s=5)])
    store.advance(6)
    (original,) = await take(store)
    await store.inbox.sweep()

    again = tracked(store, message_id="m1", reply_to="b")
    assert await store.inbox.append([again]) == [None]

    (event,) = await take(store)
    assert event.id == original.id
    assert event.body == original.body
    assert event.reply_to == "b"


@pytest.mark.parametrize("seconds", [0, 20, 40, 59])
async def test_a_duplicate_long_after_the_outcome(
    store: StoreUnderTest, seconds: float
) -> None:
    """It gets the outcome as long as its id is remembered."""
    await store.inbox.append([tracked(store, message_id="m1", key="k")])
    await store.inbox.append([tracked(store, message_id="m2", key="k")])
    assert told(await take(store)) == [("replaced", "m1")]
    store.advance(seconds)
    await store.inbox.append([tracked(store, message_id="m3", key="k")])
    assert told(await take(store)) == [("replaced", "m2")]

    again = [tracked(store, message_id=each, reply_to="b") for each in ("m2", "m1")]
    assert await store.inbox.append(again) == [None, None]

    events = await take(store)
    assert told(events) == [("replaced", "m2"), ("replaced", "m1")]


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_duplicate_with_another_event(
    store: StoreUnderTest, *, is_open: bool
) -> None:
    """It is the same message: outcomes have its event, and an address is told once."""
    await store.inbox.append([tracked(store, message_id="m1", reply_to="a", ttl_s=5)])
    if not is_open:
        store.advance(6)
        assert told(await take(store)) == [("expired", "m1")]
    renamed = [
        replace(tracked(store, message_id="m1", reply_to=each), event="other")
        for each in ("a" if is_open else "b", "b")[not is_open :]
    ]
    assert await store.inbox.append(renamed) == [None] * len(renamed)
    store.advance(6)

    events = await take(store)

    assert [each.reply_to for each in events] == (["a", "b"] if is_open else ["b"])
    assert {orjson.loads(each.body)["event"] for each in events} == {"message"}


async def test_many_duplicates_of_one_message(store: StoreUnderTest) -> None:
    """A producer that publishes with another address each time fills no store."""
    addresses = [f"q{number}" for number in range(ADDRESSES_MAX + 5)]
    for reply_to in addresses[:3]:
        message = tracked(store, message_id="m1", reply_to=reply_to, ttl_s=5)
        await store.inbox.append([message])
    rest = [
        tracked(store, message_id="m1", reply_to=reply_to, ttl_s=5)
        for reply_to in addresses[3:]
    ]
    await store.inbox.append(rest)
    store.advance(6)

    events = await take(store)

    assert {each.reply_to for each in events} == set(addresses[:ADDRESSES_MAX])
    assert len(events) == ADDRESSES_MAX


async def test_a_duplicate_in_one_batch(store: StoreUnderTest) -> None:
    """It does not matter in which batch it comes."""
    batch = [
        tracked(store, message_id="m1", reply_to="a", ttl_s=5),
        tracked(store, message_id="m1", reply_to="b", ttl_s=5),
        tracked(store, message_id="m1", ttl_s=5, user="bob"),
    ]
    assert await store.inbox.append(batch) == [1, None, 1]
    store.advance(6)

    events = await take(store)

    found = {(each.user, each.reply_to) for each in events}
    assert found == {("ann", "a"), ("ann", "b"), ("bob", None)}
    assert len(events) == 3


async def test_a_duplicate_of_a_message_that_its_batch_replaces(
    store: StoreUnderTest,
) -> None:
    """It is told the same outcome, in whatever order the three arrive."""
    duplicates = [tracked(store, message_id="m1", reply_to=each) for each in "bc"]
    batch = [
        tracked(store, message_id="m1", key="k", reply_to="a"),
        duplicates[0],
        tracked(store, message_id="m2", key="k"),
        duplicates[1],
    ]
    assert await store.inbox.append(batch) == [1, None, 2, None]

    events = await take(store)

    assert told(events) == [("replaced", "m1")] * 3
    assert {each.reply_to for each in events} == {"a", "b", "c"}


async def test_a_duplicate_of_a_message_without_receipt(store: StoreUnderTest) -> None:
    """The store does not know its outcome, so nothing is told."""
    await store.inbox.append([store.message("ann", b"1", message_id="m1")])

    assert await store.inbox.append([tracked(store, message_id="m1")]) == [None]

    store.inbox.mark_delivered("ann", 1)
    await store.inbox.check()
    assert await take(store) == []


# --- forgetting


@pytest.mark.parametrize("is_in_time", [True, False])
async def test_a_duplicate_of_a_message_that_only_has_a_deadline(
    store: StoreUnderTest, *, is_in_time: bool
) -> None:
    """It is told the outcome if it comes while the deadline is open."""
    first = tracked(store, message_id="m1", undelivered_after_s=5, wants_receipt=False)
    again = tracked(store, message_id="m1")
    await store.inbox.append([first])
    if is_in_time:
        assert await store.inbox.append([again]) == [None]
    store.advance(6)
    assert told(await take(store)) == [("undelivered", "m1")]
    assert await store.inbox.append([again]) == [None]
    store.advance(1001)
    await store.inbox.sweep()

    assert told(await take(store)) == [("trimmed", "m1")] * is_in_time


async def test_a_forgotten_user_has_no_open_receipts(store: StoreUnderTest) -> None:
    """Its messages are gone, so their outcomes were decided; new ones begin above."""
    await store.inbox.append([tracked(store, message_id="m1"), tracked(store)])
    store.advance(1001)
    await store.inbox.sweep()
    assert (await store.inbox.state("ann")).forgotten > 0

    assert told(await take(store)) == [("trimmed", "m1"), ("trimmed", None)]
    (offset,) = await store.inbox.append([tracked(store, message_id="m1")])
    assert offset is not None
    store.inbox.mark_delivered("ann", offset)
    assert await told_after_marks(store, 1) == [("delivered", "m1")]


# --- undelivered


async def test_a_message_that_is_not_delivered_in_time(store: StoreUnderTest) -> None:
    """It is published once, with its data, and stays in the inbox."""
    await store.inbox.append(
        [
            tracked(
                store, b'{"a":1}', message_id="m1", undelivered_after_s=45, reply_to="r"
            )
        ]
    )
    store.advance(44)
    assert await take(store) == []
    store.advance(2)

    (event,) = await take(store)

    assert (event.routing_key, event.reply_to) == ("message.undelivered", None)
    assert orjson.loads(event.body)["data"] == {"a": 1}
    assert orjson.loads(event.body)["delay_ms"] == 46_000
    assert await take(store) == []
    assert len(await store.read_all("ann")) == 1
    store.inbox.mark_delivered("ann", 1)
    assert await told_after_marks(store, 1) == [("delivered", "m1")]


async def test_a_message_that_is_delivered_in_time(store: StoreUnderTest) -> None:
    """Nothing is ever said about it, also if its mark is written after the time."""
    await store.inbox.follow("ann")  # only users with windows have marks
    await store.inbox.append(
        [
            tracked(store, undelivered_after_s=45, wants_receipt=False),
            tracked(store, undelivered_after_s=45, wants_receipt=False, user="bob"),
        ]
    )
    store.advance(44)
    store.inbox.mark_delivered("ann", 1)
    store.advance(2)

    events = await take(store)

    assert [each.user for each in events] == ["bob"]
    await store.inbox.check()
    assert await take(store) == []


async def test_a_mark_after_the_time(store: StoreUnderTest) -> None:
    """Both are published, in order, however late the store looks."""
    await store.inbox.append([tracked(store, undelivered_after_s=45, message_id="m1")])
    store.advance(50)

    store.inbox.mark_delivered("ann", 1)

    assert await told_after_marks(store, 2) == [
        ("undelivered", "m1"),
        ("delivered", "m1"),
    ]


@pytest.mark.parametrize("wants_receipt", [True, False])
async def test_a_message_that_can_no_longer_be_delivered(
    store: StoreUnderTest, wants_receipt: bool
) -> None:
    """It counts as undelivered at once: its time need not pass."""
    messages = [
        tracked(
            store, b"1", ttl_s=5, undelivered_after_s=45, wants_receipt=wants_receipt
        ),
        tracked(
            store, b"2", user="bob", undelivered_after_s=45, wants_receipt=wants_receipt
        ),
    ]
    await store.inbox.append(messages)
    store.advance(6)
    events = await take(store)
    await store.append("bob", *(b"%d" % number for number in range(100)))
    events += await take(store)

    undelivered = [each for each in events if each.routing_key == "message.undelivered"]
    assert [orjson.loads(each.body)["data"] for each in undelivered] == [1, 2]
    others = [outcome for outcome, _ in told(events) if outcome != "undelivered"]
    assert others == (["expired", "trimmed"] if wants_receipt else [])
    store.advance(60)
    assert await take(store) == []


async def test_a_replaced_message_is_not_undelivered(store: StoreUnderTest) -> None:
    """The newer message has a time of its own."""
    await store.inbox.append([tracked(store, b"1", key="k", undelivered_after_s=45)])
    store.advance(30)
    await store.inbox.append([tracked(store, b"2", key="k", undelivered_after_s=45)])
    assert told(await take(store)) == [("replaced", None)]
    store.advance(20)
    assert await take(store) == []
    store.advance(30)

    (event,) = await take(store)
    assert orjson.loads(event.body)["data"] == 2


async def test_a_jump_of_the_wall_clock_decides_nothing(store: StoreUnderTest) -> None:
    """No message is late because the clock was set."""
    await store.inbox.append(
        [tracked(store, undelivered_after_s=45, ttl_s=60, message_id="m1")]
    )
    store.clock.jump(3600)

    assert await take(store) == []

    store.inbox.mark_delivered("ann", 1)
    assert await told_after_marks(store, 1) == [("delivered", "m1")]


async def test_many_messages_are_due_at_once(store: StoreUnderTest) -> None:
    """A store decides about some at a time, so that it does not block what else it does."""
    for user in range(30):
        await store.inbox.append(
            [
                tracked(store, user=f"u{user}", message_id=f"m{number}", ttl_s=10)
                for number in range(90)
            ]
        )
    store.advance(11)

    events = await take(store)

    assert len({event.id for event in events}) == len(events) == 2700


async def test_one_poll_decides_about_a_part_of_what_is_due(tmp_path: Path) -> None:
    """After a long stop all is due at once; events are published while the rest waits."""
    clock = Clock()
    retention = Retention(max_messages=1000, max_age_s=1000, dedupe_s=60)
    for name in ("sqlite", "redis"):
        folder = tmp_path / name
        folder.mkdir()
        inbox = STORES[name](retention, clock=clock.steady, folder=folder)
        await inbox.open()
        store = StoreUnderTest(inbox, clock)
        for user in ("ann", "bob", "eve"):
            batch = [tracked(store, user=user, ttl_s=10) for _ in range(1000)]
            await inbox.append(batch)
        store.advance(11)

        await inbox.pending_events(1)
        waiting, _ = await inbox.events_depth()
        assert 0 < waiting <= 2000
        events = await take(store)
        assert len({event.id for event in events}) == len(events) == 3000
        await inbox.close()


async def test_one_poll_adds_few_events_with_large_data(store: StoreUnderTest) -> None:
    """Redis does nothing else while it copies the data of late messages."""
    data = b'"%b"' % (b"x" * 250_000)
    for _ in range(12):
        await store.inbox.append([tracked(store, data, undelivered_after_s=10)])
    store.advance(11)

    await store.inbox.pending_events(1)
    waiting, _ = await store.inbox.events_depth()

    if store.inbox.description.startswith("redis"):
        assert waiting == 5  # together more than a megabyte
    assert len(await take(store)) == 12


async def test_memory_decides_about_large_data_in_steps() -> None:
    """Each step copies about a megabyte, and other tasks run between them."""
    clock = Clock()
    retention = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)
    store = StoreUnderTest(MemoryInbox(retention, clock=clock.steady), clock)
    data = b'"%b"' % (b"x" * 250_000)
    late = [tracked(store, data, undelivered_after_s=10) for _ in range(12)]
    await store.inbox.append(late)
    store.advance(11)

    polling = store.inbox.pending_events(1)
    polling.send(None)
    waiting, _ = await store.inbox.events_depth()
    polling.close()

    assert waiting == 5
    assert len(await take(store)) == 12


async def test_what_was_delivered_in_time_does_not_delay_what_was_not() -> None:
    """In memory, thousands of times may be noted of messages that are delivered by now."""
    clock = Clock()
    retention = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)
    store = StoreUnderTest(MemoryInbox(retention, clock=clock.steady), clock)
    for number in range(30):
        user = f"user {number}"
        batch = [
            tracked(store, user=user, undelivered_after_s=10, wants_receipt=False)
            for _ in range(100)
        ]
        await store.inbox.append(batch)
        store.inbox.mark_delivered(user, 100)
    late = tracked(store, message_id="m1", undelivered_after_s=10)
    await store.inbox.append([late])
    store.advance(11)

    assert told(await store.inbox.pending_events(10)) == [("undelivered", "m1")]


async def test_polls_after_a_jump_of_the_wall_clock(store: StoreUnderTest) -> None:
    """A message and its duplicate stay one entry each, however often the store looks."""
    messages = [tracked(store, message_id="m1", ttl_s=60, reply_to=to) for to in "ab"]
    await store.inbox.append(messages)
    store.clock.jump(3600)

    for _ in range(40):
        assert await take(store) == []

    store.inbox.mark_delivered("ann", 1)
    assert await told_after_marks(store, 2) == [("delivered", "m1")] * 2


async def test_what_is_not_due_after_a_jump_delays_nothing_that_is(
    store: StoreUnderTest,
) -> None:
    """Thousands of deadlines seem to have passed; a store must look beyond them."""
    # All in one part of Redis.
    names = [name for name in map(str, range(9000)) if tag_of(name) == 0]
    for user in names[1:31]:
        await store.inbox.append(
            [
                tracked(store, user=user, message_id=f"m{number}", ttl_s=3000)
                for number in range(90)
            ]
        )
    store.clock.jump(3600)
    await store.inbox.append([tracked(store, user=names[0], message_id="m1", ttl_s=10)])
    store.advance(11)

    assert await told_after_marks(store, 1) == [("expired", "m1")]
