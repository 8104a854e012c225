"""The checker of the fault suite, with synthetic histories."""

from collections.abc import Iterable

import pytest

from tests.faults.suite.checker import (
    MOST_CONNECTS,
    Checker,
    Verdict,
    Violation,
    check,
)
from tests.faults.suite.history import (
    Acked,
    Ambiguous,
    Closed,
    Confirmed,
    Connected,
    DeadLettered,
    Disconnected,
    Event,
    FaultEnded,
    FaultStarted,
    Invoked,
    Opened,
    Overdue,
    Received,
    Reported,
    Synced,
    WindowCounts,
)

A, B = "ann.a", "ann.b"


def publish(
    t: float, number: int, *, has_id: bool = False, is_bad: bool = False
) -> list[Event]:
    """Return the events of a publish to ann, confirmed half a second later."""
    return [
        Invoked(t, "ann", "p", number, has_id, is_bad),
        Confirmed(t + 0.5, "ann", "p", number),
    ]


def got(
    t: float, number: int, offset: int, *, window: str = A, user: str = "ann"
) -> Received:
    return Received(t, window, user, "p", number, f"e-{offset}")


def opened(window: str = A, *, keeps_position: bool = False) -> Opened:
    return Opened(0.0, window, "ann", keeps_position)


def violations(events: Iterable[Event]) -> dict[str, int]:
    """Return the violations whose count is not zero."""
    return {kind: n for kind, n in check(events).violations.items() if n}


def test_a_history_in_which_everything_arrives_in_order_is_good() -> None:
    """The checker must not report violations of a correct bridge."""
    events = [opened(), opened(B), *publish(1, 1), *publish(2, 2)]
    for window in (A, B):
        events += [got(3, 1, 1, window=window), got(4, 2, 2, window=window)]

    assert violations(events) == {}


def test_a_confirmed_message_that_a_window_never_received_is_lost() -> None:
    """It is lost even if another window of the same user has received it."""
    events = [opened(), opened(B), *publish(1, 1), got(2, 1, 1)]

    assert violations(events) == {Violation.LOST: 1}


def test_a_message_that_two_windows_miss_is_one_lost_message() -> None:
    """Messages are counted, not windows."""
    assert violations([opened(), opened(B), *publish(1, 1)]) == {Violation.LOST: 1}


def test_an_unconfirmed_message_may_be_missing_or_arrive() -> None:
    """Without a confirm the producer has no guarantee."""
    invoked: list[Event] = [Invoked(1.0, "ann", "p", 1), Ambiguous(1.1, "ann", "p", 1)]

    assert violations([opened(), *invoked]) == {}
    assert violations([opened(), *invoked, got(2, 1, 1)]) == {}


def test_a_closed_window_may_miss_messages() -> None:
    """It was not open until the end of the run."""
    assert violations([opened(), *publish(1, 1), Closed(2.0, A)]) == {}


def test_a_dead_letter_is_not_lost() -> None:
    """A message in the dead-letter queue is counted, and not lost."""
    verdict = check(
        [
            opened(),
            *publish(1, 1),
            DeadLettered(2.0, "ann", "p", 1, "attempts_exhausted"),
        ]
    )

    assert verdict.is_good
    assert verdict.counts["valid messages dead-lettered"] == 1


def test_an_invalid_message_must_be_dead_lettered() -> None:
    """It must neither disappear nor reach a page."""
    bad = [opened(), *publish(1, 1, is_bad=True)]
    dead_lettered = DeadLettered(2.0, "ann", "p", 1, "malformed_body")

    assert violations([*bad, dead_lettered]) == {}
    assert violations(bad) == {Violation.NOT_DEAD_LETTERED: 1}
    assert violations([*bad, dead_lettered, got(2, 1, 1)]) == {Violation.UNEXPECTED: 1}


def test_a_message_confirmed_before_the_next_was_published_arrives_first() -> None:
    """The order per user is the order in which a producer got its confirms."""
    swapped = [got(3, 2, 1), got(4, 1, 2)]

    assert violations([opened(), *publish(1, 1), *publish(2, 2), *swapped]) == {
        Violation.ORDER: 1
    }


def test_publishes_that_overlap_have_no_order() -> None:
    """The first was confirmed after the second was published."""
    overlapping: list[Event] = [
        Invoked(1.0, "ann", "p", 1),
        Invoked(1.1, "ann", "p", 2),
        Confirmed(1.2, "ann", "p", 2),
        Confirmed(1.3, "ann", "p", 1),
    ]

    assert violations([opened(), *overlapping, got(2, 2, 1), got(3, 1, 2)]) == {}


def test_a_message_without_a_confirm_may_arrive_late() -> None:
    """The broker may accept it at any later time."""
    late = [
        Invoked(1.0, "ann", "p", 1),
        Ambiguous(1.5, "ann", "p", 1),
        *publish(2, 2),
    ]

    assert violations([opened(), *late, got(3, 2, 1), got(4, 1, 2)]) == {}


@pytest.mark.parametrize(
    "received",
    [
        got(2, 9, 1),
        got(2, 1, 1, user="ben"),
        Received(2.0, A, "ann", "stranger", 1, "e-1"),
    ],
)
def test_a_message_that_was_not_published_to_the_user_is_unexpected(
    received: Received,
) -> None:
    """The worst case is a message of another user."""
    assert violations([opened(), *publish(1, 1), got(2, 1, 1), received])[
        Violation.UNEXPECTED
    ]


def test_the_same_position_twice_in_one_page_is_a_repeat() -> None:
    """A window that resumes from its position receives nothing twice."""
    events = [opened(), *publish(1, 1), got(2, 1, 1), got(3, 1, 1)]

    assert violations(events) == {Violation.REPEATED_POSITION: 1}


def test_the_same_position_after_a_reload_with_a_position_is_a_repeat() -> None:
    """The new page sent the position of the old one."""
    events = [
        opened(),
        *publish(1, 1),
        got(2, 1, 1),
        opened(keeps_position=True),
        got(3, 1, 1),
    ]

    assert violations(events) == {Violation.REPEATED_POSITION: 1}


def test_a_page_without_a_position_may_receive_unacked_messages_again() -> None:
    """Manual acks mean at-least-once delivery."""
    events = [opened(), *publish(1, 1), got(2, 1, 1), opened(), got(3, 1, 1)]
    verdict = check(events)

    assert verdict.is_good
    assert verdict.counts["repeats of unacked messages"] == 1


def test_a_message_with_an_id_at_two_positions_is_a_repeat() -> None:
    """It was stored twice within the dedupe window."""
    events = [opened(), *publish(1, 1, has_id=True), got(2, 1, 1), got(3, 1, 2)]

    assert violations(events) == {Violation.REPEATED_ID: 1}


def test_a_message_without_an_id_may_be_stored_twice_and_is_counted() -> None:
    """A crash between append and ack repeats it: at least once."""
    verdict = check([opened(), *publish(1, 1), got(2, 1, 1), got(3, 1, 2)])

    assert verdict.is_good
    assert verdict.counts["copies of messages without id"] == 1


def test_a_redelivery_stores_all_following_messages_again() -> None:
    """The queue redelivers everything after the last ack, in order."""
    publishes = [event for number in (1, 2, 3, 4) for event in publish(number, number)]
    numbers = [1, 2, 3, 2, 3, 4]
    events = [opened(), *publishes]
    events += [got(9, number, offset) for offset, number in enumerate(numbers, 1)]

    assert check(events).is_good


def test_old_messages_stored_after_newer_ones_are_out_of_order() -> None:
    """A bridge was frozen with message 2 in flight while others stored up to 4."""
    publishes = [
        event for number in (1, 2, 3, 4, 5) for event in publish(number, number)
    ]
    numbers = [1, 2, 3, 4, 2, 5]
    events = [opened(), *publishes]
    events += [got(9, number, offset) for offset, number in enumerate(numbers, 1)]

    assert violations(events) == {Violation.ORDER: 1}


def test_positions_have_no_holes_and_never_go_back() -> None:
    """A skipped position is a violation, even if its message was never confirmed."""
    base = [opened(), *publish(1, 1), *publish(2, 2)]

    assert violations([*base, got(3, 1, 1), got(4, 2, 3)]) == {Violation.HOLE: 1}
    assert violations([*base, got(3, 1, 5), got(4, 2, 4)]) == {Violation.ORDER: 1}


def test_a_reported_gap_and_a_changed_epoch_are_violations() -> None:
    """With a durable store, both are impossible."""
    gap = Synced(2.0, A, is_complete=False, missed=3, reason="limit")
    reset = Received(4.0, A, "ann", "p", 2, "f-1")

    assert violations([opened(), gap]) == {Violation.GAP: 1}
    assert violations(
        [opened(), *publish(1, 1), *publish(2, 2), got(3, 1, 1), reset]
    ) == {Violation.EPOCH: 1}


def test_a_reconnecting_stock_client_must_recover() -> None:
    """A first connection has nothing to recover."""
    assert violations([opened(), Connected(1.0, A, recovered=None)]) == {}
    assert violations([opened(), Connected(1.0, A, recovered=True)]) == {}
    assert violations([opened(), Connected(1.0, A, recovered=False)]) == {
        Violation.NOT_RECOVERED: 1
    }


def test_missing_messages_are_known_at_any_time() -> None:
    """The run waits for the missing messages before it ends."""
    checker = Checker()
    for event in [opened(), *publish(1, 1)]:
        checker.feed(event)
    assert list(checker.missing()) == [(A, ("p", 1))]

    checker.feed(got(2, 1, 1))
    assert list(checker.missing()) == []


def test_the_verdict_lists_every_kind_of_violation() -> None:
    """The zeros in the table show what was checked."""
    verdict = check([opened(), Acked(1.0, A, "e-1", is_ok=True)])

    assert verdict.violations == dict.fromkeys(Violation.ALL, 0)
    assert verdict.is_good
    assert not Verdict({}, {Violation.LOST: 1}, ()).is_good


def test_the_rate_of_reconnects_is_measured_after_the_first_fault() -> None:
    """The suite itself paces the first connections."""
    first = [Connected(t, A, recovered=None) for t in (0.1, 0.2, 0.3, 0.4, 0.5)]
    again = [Connected(t, A, recovered=True) for t in (1.0, 1.5, 1.99, 2.1, 4.0)]

    verdict = check([opened(), *first, FaultStarted(0.9, 1, "a fault"), *again])

    assert verdict.counts["connects"] == 10
    assert verdict.counts[MOST_CONNECTS] == 3


def test_bridges_with_windows_are_counted() -> None:
    """A fleet with all windows on one bridge would test nothing."""
    assert check([WindowCounts(1.0, [3, 0, 4])]).counts["bridges with windows"] == 2


def test_a_message_that_a_fault_held_up_is_a_violation() -> None:
    """It arrives in the end, but some faults must not disturb delivery at all."""
    late: list[Event] = [Overdue(9, A, "ann", "p", 1), got(10, 1, 1)]

    assert violations([opened(), *publish(1, 1), *late]) == {Violation.HELD_UP: 1}


def test_a_window_is_complete_when_it_has_all_confirmed_messages() -> None:
    """Dead letters are accounted for and need not arrive."""
    checker = Checker()
    for event in [opened(), *publish(1, 1), *publish(2, 2), got(3, 1, 1)]:
        checker.feed(event)
    assert not checker.is_complete(A)

    checker.feed(DeadLettered(4, "ann", "p", 2, "unrouted"))

    assert checker.is_complete(A)
    assert not checker.is_complete(B)


def keyed(t: float, number: int, key: str = "k") -> list[Event]:
    """Return the events of a publish with a key, confirmed half a second later."""
    return [
        Invoked(t, "ann", "p", number, has_id=True, key=key),
        Confirmed(t + 0.5, "ann", "p", number),
    ]


def test_a_replaced_message_may_be_missing_and_the_newest_may_not() -> None:
    """A window that is open at the end has the newest message of each key."""
    base = [opened(), *keyed(1, 1), *keyed(2, 2, "other"), *keyed(3, 3)]

    assert violations([*base, got(4, 2, 2), got(5, 3, 3)]) == {}
    assert violations([*base, got(4, 1, 1), got(5, 2, 2)]) == {Violation.LOST: 1}
    assert violations([*base, got(5, 3, 3)]) == {Violation.LOST: 1}


def test_a_window_that_opens_later_needs_the_newest_of_each_key() -> None:
    """Nothing else of the key is in the inbox any more."""
    published = [*keyed(1, 1), *keyed(2, 2)]

    assert violations([*published, opened(), got(4, 2, 2)]) == {}
    assert violations([*published, opened()]) == {Violation.LOST: 1}


def test_an_older_message_of_a_key_may_not_come_after_a_newer_one() -> None:
    """The page would show an old value."""
    events = [opened(), *keyed(1, 1), *keyed(2, 2), got(4, 2, 2), got(5, 1, 3)]

    assert Violation.ORDER in violations(events)


def test_a_skipped_position_must_be_that_of_a_message_with_a_key() -> None:
    """Also if another window shows only later what was there."""
    base = [opened(), opened(B), *publish(1, 1), *publish(2, 2), *keyed(3, 3)]
    one = [got(4, 1, 1), got(5, 3, 3)]
    other = [got(6, number, number, window=B) for number in (1, 2, 3)]

    found = violations([*base, *one, *other])
    assert found == {Violation.LOST: 1, Violation.HOLE: 1}
    assert violations([*base, *other, *one]) == found


def test_no_more_positions_are_skipped_than_messages_have_keys() -> None:
    """Each hole was left by one of them."""
    base = [opened(), *keyed(1, 1), *publish(2, 2), got(3, 2, 2)]

    assert violations([*base[:-1], got(2, 1, 1), *keyed(3, 3), got(4, 2, 3)]) == {
        Violation.LOST: 1
    }
    assert violations(
        [opened(), *keyed(1, 1), *keyed(2, 2), got(3, 1, 1), got(4, 2, 9)]
    ) == {Violation.HOLE: 5}


def retained(t: float, number: int, *, is_cleared: bool = False) -> list[Event]:
    """Return the events of a publish that retains the key, or clears it."""
    return [
        Invoked(
            *(t, "ann", "p", number),
            has_id=True,
            key="k",
            is_retained=not is_cleared,
            is_cleared=is_cleared,
        ),
        Confirmed(t + 0.5, "ann", "p", number),
    ]


def test_a_new_page_needs_the_newest_message_of_a_retained_key_again() -> None:
    """The page before it had the message; its position is that of something else."""
    synced = Synced(5, A, is_complete=True, missed=0, reason=None)
    base = [opened(), *retained(1, 1), *publish(2, 2), got(3, 1, 1), got(4, 2, 2)]
    reloaded = [*base, synced, opened(keeps_position=True)]

    assert violations(base) == {}
    assert violations([*reloaded, got(6, 1, 2), synced]) == {}
    assert violations(reloaded) == {Violation.LOST: 1}
    late = violations([*reloaded, synced, *retained(6, 3), got(7, 3, 3)])
    assert late == {Violation.RETAINED: 1}


def test_a_cleared_key_is_not_needed_any_more() -> None:
    """A new page may still receive the message that cleared it."""
    base = [opened(), *retained(1, 1), *retained(2, 2, is_cleared=True)]
    had = [*base, got(3, 2, 2), opened(keeps_position=True)]

    assert violations(had) == {}
    # A message that retains it again may be stored later.
    synced = Synced(5, A, is_complete=True, missed=0, reason=None)
    again = [*base, got(3, 2, 2), *retained(4, 3)]
    assert violations([*again, opened(keeps_position=True), synced, got(6, 3, 3)]) == {}


def test_a_page_may_not_receive_an_older_message_of_its_key() -> None:
    """Also if it is repeated, as retained messages are."""
    base = [opened(), *retained(1, 1), *retained(2, 2), got(3, 1, 1), got(4, 2, 2)]

    assert violations([*base, got(5, 1, 2)]) == {Violation.STALE: 1}
    assert violations([*base, opened(keeps_position=True), got(5, 2, 2)]) == {}


def tracked(
    t: float, number: int, *, has_id: bool = True, key: str | None = None
) -> list[Event]:
    """Return the events of a publish that asks for a receipt, confirmed soon."""
    return [
        Invoked(t, "ann", "p", number, has_id, key=key, is_tracked=True),
        Confirmed(t + 0.5, "ann", "p", number),
    ]


def reported(
    number: int, outcome: str = "delivered", *, id_: str = "a", delay_ms: int = 0
) -> Reported:
    event_id = f"{id_}.{outcome}"
    return Reported(9, "ann", "p", number, outcome, event_id, delay_ms)


def test_each_confirmed_message_that_asks_has_one_outcome() -> None:
    """Repeats of an event are allowed; those of an outcome only for copies without an id."""
    base = [opened(), *tracked(1, 1), got(2, 1, 1)]
    plain = [opened(), *tracked(1, 1, has_id=False), got(2, 1, 1)]
    twice = [reported(1), reported(1, id_="b")]

    assert violations([*base, reported(1), reported(1)]) == {}
    assert violations(base) == {Violation.UNREPORTED: 1}
    assert violations([*base, *twice]) == {Violation.OUTCOMES: 1}
    assert violations([*plain, *twice]) == {}


def test_a_repeat_of_an_event_is_the_same() -> None:
    """Otherwise it was published before the store had decided it for good."""
    base = [opened(), *tracked(1, 1), got(2, 1, 1), reported(1, delay_ms=7)]

    assert violations([*base, reported(1, delay_ms=7)]) == {}
    assert violations([*base, reported(1, delay_ms=8)]) == {Violation.CHANGED: 1}
    late = [reported(1, "undelivered", delay_ms=ms) for ms in (1200, 1300)]
    assert violations([*base, *late]) == {Violation.CHANGED: 1, Violation.FALSE_LATE: 1}


def test_an_unconfirmed_message_may_have_an_outcome() -> None:
    """It may have been stored nevertheless."""
    base = [opened(), *tracked(1, 1)[:1]]

    assert violations(base) == {}
    assert violations([*base, got(2, 1, 1), reported(1)]) == {}


def test_an_outcome_of_a_message_that_did_not_ask_is_unexpected() -> None:
    """So is one of a message that was not published."""
    base = [opened(), *publish(1, 1), got(2, 1, 1)]

    assert violations([*base, reported(1)]) == {Violation.UNEXPECTED: 1}
    assert violations([*base, reported(2)]) == {Violation.UNEXPECTED: 1}


def test_an_outcome_must_agree_with_what_the_pages_received() -> None:
    """No message of the suite expires or is trimmed."""
    false = {Violation.FALSE_OUTCOME: 1}
    base = [opened(), *tracked(1, 1), got(2, 1, 1)]
    for outcome in ("expired", "trimmed", "replaced", "dead"):
        assert violations([*base, reported(1, outcome)]) == false

    older = [opened(), *tracked(1, 1, key="k"), *keyed(2, 2), got(3, 2, 2)]
    assert violations([*older, reported(1, "replaced")]) == {}
    assert violations([*older, reported(1)]) == false


def test_a_message_may_be_trimmed_if_it_was_stored_while_a_clock_jumped() -> None:
    """A command with the time from before the jump takes it for old."""
    base = [opened(), *tracked(1, 1), got(2, 1, 1), reported(1, "trimmed")]

    def jump(kind: str, t: float) -> list[Event]:
        ended = FaultEnded(t + 0.2, 1, kind, happened=True)
        return [FaultStarted(t, 1, kind), ended, *base]

    false = {Violation.FALSE_OUTCOME: 1}
    assert violations(jump("bridge: clock jumps eight days", 0.5)) == {}
    assert violations(jump("bridge: clock jumps eight days", -5)) == false
    assert violations(jump("bridge: frozen", 0.5)) == false


def test_a_page_that_is_reloaded_may_not_see_what_was_delivered() -> None:
    """Its client has answered a ping; with manual acks the page itself answers."""
    missed = [*tracked(1, 1, key="k"), *keyed(2, 2), reported(1)]

    def reload(window: str, t: float) -> list[Event]:
        new = Opened(t, window, "ann", keeps_position=True)
        return [opened(window), *missed, new, got(30, 2, 2, window=window)]

    false = {Violation.FALSE_OUTCOME: 1}
    assert violations(reload("ann.js", 1.2)) == {}
    assert violations(reload("ann.js", 20)) == false
    assert violations(reload("ann.acks", 1.2)) == false

    def close(reason: str) -> list[Event]:
        closed = Disconnected(1.2, "ann.js", reason)
        return [opened("ann.js"), *missed, closed, got(30, 2, 2, window="ann.js")]

    assert violations(close("io client disconnect")) == {}
    assert violations(close("transport close")) == false


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("network between pages and bridge: frozen", {}),
        ("network between bridge and RabbitMQ: frozen", {Violation.FALSE_OUTCOME: 1}),
    ],
)
def test_a_bridge_may_learn_late_that_a_page_has_left(
    kind: str, expected: dict[str, int]
) -> None:
    """Until then it writes to the page, and the close that comes later is an answer."""
    events = [
        opened("ann.js"),
        FaultStarted(0.5, 1, kind),
        Disconnected(0.8, "ann.js", "io client disconnect"),
        *tracked(1, 1, key="k"),
        *keyed(2, 2),
        FaultEnded(3, 1, kind, happened=True),
        reported(1),
        got(30, 2, 2, window="ann.js"),
    ]

    assert violations(events) == expected


def test_a_dead_letter_has_an_outcome_or_was_never_seen_by_bridge() -> None:
    """RabbitMQ dead-letters what it cannot route, and gives no reason."""
    base = [opened(), *tracked(1, 1)]
    dead = DeadLettered(4, "ann", "p", 1, "malformed_body")

    assert violations([*base, DeadLettered(4, "ann", "p", 1, "")]) == {}
    assert violations([*base, dead]) == {Violation.UNREPORTED: 1}
    assert violations([*base, dead, reported(1, "dead")]) == {}


def test_a_message_is_reported_as_undelivered_if_it_was_late() -> None:
    """That is no outcome; the margins and the jumps of a clock are not judged."""
    base = [opened(), *tracked(1, 1), got(2, 1, 1)]
    late = [*base, reported(1, "undelivered")]

    assert violations(late) == {Violation.UNREPORTED: 1}
    assert violations([*late, reported(1, delay_ms=1200)]) == {}
    assert violations([*late, reported(1, delay_ms=0)]) == {}
    assert violations([*late, reported(1, delay_ms=900)]) == {Violation.FALSE_LATE: 1}
    assert violations([*base, reported(1, delay_ms=900)]) == {}
    assert violations([*base, reported(1, delay_ms=1200)]) == {Violation.NOT_LATE: 1}
    assert violations([*base, reported(1, delay_ms=8 * 86_400_000)]) == {}


def test_a_message_on_its_way_while_a_clock_jumped_may_be_late() -> None:
    """A bridge judges no deadline until its clock has been steady for as long."""
    kind = "bridge: clock jumps eight days"
    jump: list[Event] = [
        FaultStarted(0.5, 1, kind),
        FaultEnded(1.5, 1, kind, happened=True),
    ]
    late = [opened(), *tracked(1, 1), got(2, 1, 1), reported(1, delay_ms=1200)]
    later = [opened(), *tracked(9, 1), got(10, 1, 1), reported(1, delay_ms=1200)]

    assert violations([*jump, *late]) == {}
    assert violations([*jump, *later]) == {Violation.NOT_LATE: 1}
