"""Decisions about tracked messages, without a store."""

from dataclasses import replace
from itertools import product

import pytest

from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message
from bridge.core.message_options import Tracking
from bridge.core.receipts import (
    Receipt,
    WorkerEvent,
    decide,
    due_s,
    duplicate_tracking,
    pack_receipt,
    unpack_event,
    unpack_receipt,
)
from bridge.enums import ReceiptOutcome as Outcome

TAKEN_S = 1000.0


def receipt(
    *,
    wants: bool = True,
    after_s: float | None = None,
    ttl_s: float | None = None,
    offset: int = 5,
) -> Receipt:
    deadline_s = None if ttl_s is None else TAKEN_S + ttl_s
    message = Message("ann", "message", b"1", TAKEN_S, "m1", deadline_s)
    tracking = Tracking(wants, "answers", "c", after_s)
    return Receipt(message, offset, tracking)


@pytest.mark.parametrize(
    ("delivered", "absence", "age_s", "outcome"),
    [
        (5, None, 10, Outcome.DELIVERED),
        (9, None, 10, Outcome.DELIVERED),
        (4, None, 10, None),
        (5, Outcome.TRIMMED, 10, Outcome.TRIMMED),
        (5, Outcome.REPLACED, 10, Outcome.REPLACED),
        (5, None, 60, Outcome.EXPIRED),
        (4, None, 60, Outcome.EXPIRED),
        (5, None, 2000, Outcome.TRIMMED),
        (5, Outcome.REPLACED, 2000, Outcome.REPLACED),
    ],
)
def test_the_final_outcome(
    delivered: int, absence: Outcome | None, age_s: float, outcome: Outcome | None
) -> None:
    """A mark counts only if the message was there for a window to receive."""
    asked = receipt(ttl_s=30)
    now_s = TAKEN_S + age_s

    verdict = decide(
        asked,
        delivered=delivered,
        at=ClockReading(now_s),
        oldest_s=now_s - 1000,
        absence=absence,
    )

    assert verdict.outcomes == ([] if outcome is None else [outcome])
    assert verdict.rest == (asked if outcome is None else None)


@pytest.mark.parametrize(
    ("delivered", "absence", "age_s"),
    list(product((0, 9), (None, Outcome.TRIMMED, Outcome.REPLACED), (1, 60, 2000))),
)
def test_a_late_message_is_told_at_most_once_and_not_if_it_came_in_time(
    delivered: int, absence: Outcome | None, age_s: float
) -> None:
    """In every combination, and before its outcome."""
    now_s = TAKEN_S + age_s
    waiting: Receipt | None = receipt(after_s=45)
    outcomes: list[Outcome] = []
    for _ in range(2):
        if waiting is not None:
            verdict = decide(
                waiting,
                delivered=delivered,
                at=ClockReading(now_s),
                oldest_s=now_s - 1000,
                absence=absence,
            )
            outcomes += verdict.outcomes
            waiting = verdict.rest

    in_time = (delivered and age_s < 45 and absence is None) or (
        absence is Outcome.REPLACED
    )
    is_early = not delivered and age_s < 45 and absence is None
    assert outcomes.count(Outcome.UNDELIVERED) == (not in_time and not is_early)
    assert Outcome.UNDELIVERED not in outcomes[1:]
    assert len(outcomes) <= 2


def test_nothing_is_told_that_was_not_asked_for() -> None:
    """The producer wants to know only if the message is late."""
    asked = receipt(wants=False, after_s=45)
    times = {"at": ClockReading(TAKEN_S + 50), "oldest_s": 0.0, "absence": None}

    verdict = decide(asked, delivered=0, **times)  # type: ignore[arg-type] # mixed values

    assert verdict.outcomes == [Outcome.UNDELIVERED]
    assert verdict.rest is None


def test_a_receipt_is_packed_without_data() -> None:
    """Everything else comes back."""
    asked = receipt(after_s=45, ttl_s=3.5)

    packed = pack_receipt(asked.message, asked.tracking)
    found = unpack_receipt(packed, user="ann", offset=5)

    assert found.tracking == asked.tracking
    assert found.message.data == b""
    found.message.data = b"1"
    assert found == asked
    assert due_s(found.message, found.tracking) == TAKEN_S + 3.5


def test_a_receipt_of_an_earlier_version_keeps_its_id() -> None:
    """So a decision that is repeated after an upgrade has the same id."""
    packed = b'["message",1000.0,"m1",null,true,null,null,45.0,"0123456789abcdef"]'

    found = unpack_receipt(packed, user="ann", offset=5)

    assert found.id == "0123456789abcdef"
    assert pack_receipt(found.message, found.tracking, found.stored_id) == packed


def test_the_id_of_a_receipt() -> None:
    """It is the same after a restart, and differs for all that is another message."""
    asked = receipt()
    packed = pack_receipt(asked.message, asked.tracking)
    assert unpack_receipt(packed, user="ann", offset=5).id == asked.id

    others = [
        replace(asked, offset=6),
        replace(asked, message=replace(asked.message, user="bob")),
        replace(asked, message=replace(asked.message, taken_s=TAKEN_S + 1e-6)),
    ]
    assert len({each.id for each in (asked, *others)}) == 4


def test_an_event_is_packed() -> None:
    """With its body byte for byte."""
    body = '{"ä": 1}'.encode()
    event = WorkerEvent("1", "message.dead", "ann", body, 1.5, None, "c", "m")

    assert unpack_event(event.pack(), key=None) == event


def test_an_event_that_an_earlier_version_stored_is_read() -> None:
    """After an upgrade, what waited in the outbox is published."""
    packed = b'["1","message.dead","ann",1.5,null,"c"]\n{"a": 1}'

    event = unpack_event(packed, key=None)

    assert event == WorkerEvent("1", "message.dead", "ann", b'{"a": 1}', 1.5, None, "c")


def test_a_duplicate_is_tracked_at_its_own_address() -> None:
    """Unless it is the same one."""
    original = Tracking(wants_receipt=True, reply_to="a", undelivered_after_s=5)
    same = Tracking(wants_receipt=True, reply_to="a")
    other = Tracking(wants_receipt=True, reply_to="b", undelivered_after_s=9)

    assert duplicate_tracking([original], same) is None
    assert duplicate_tracking([], other) is None
    told = Tracking(wants_receipt=True, reply_to="b")
    assert duplicate_tracking([original], other) == told
    late = Tracking(wants_receipt=False, undelivered_after_s=9)
    assert duplicate_tracking([original], late) is None
