"""The checker of the fault suite, with histories that were made up: who checks the checker."""

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
    Event,
    FaultBegan,
    Invoked,
    Opened,
    Received,
    SetAside,
    Spread,
    Synced,
)

A, B = "ann.a", "ann.b"


def publish(
    t: float, number: int, *, has_id: bool = False, is_bad: bool = False
) -> list[Event]:
    """Publish one of ann's messages, confirmed half a second later."""
    return [
        Invoked(t, "ann", "p", number, has_id, is_bad),
        Confirmed(t + 0.5, "ann", "p", number),
    ]


def got(
    t: float, number: int, offset: int, *, window: str = A, user: str = "ann"
) -> Received:
    return Received(t, window, user, "p", number, f"e-{offset}")


def opened(window: str = A, *, keeps_place: bool = False) -> Opened:
    return Opened(0.0, window, "ann", keeps_place)


def violations(events: Iterable[Event]) -> dict[str, int]:
    """Return the violations of a history that are not zero."""
    return {kind: n for kind, n in check(events).violations.items() if n}


def test_a_history_in_which_everything_arrives_in_order_is_good() -> None:
    """The checker must not cry wolf."""
    events = [opened(), opened(B), *publish(1, 1), *publish(2, 2)]
    for window in (A, B):
        events += [got(3, 1, 1, window=window), got(4, 2, 2, window=window)]

    assert violations(events) == {}


def test_a_confirmed_message_that_a_window_never_got_is_lost() -> None:
    """Also if another window of the same user has it."""
    events = [opened(), opened(B), *publish(1, 1), got(2, 1, 1)]

    assert violations(events) == {Violation.LOST: 1}


def test_a_message_that_two_windows_miss_is_one_lost_message() -> None:
    """Messages are counted, not windows."""
    assert violations([opened(), opened(B), *publish(1, 1)]) == {Violation.LOST: 1}


def test_an_unconfirmed_message_may_be_missing_or_arrive() -> None:
    """Nobody was promised anything."""
    invoked: list[Event] = [Invoked(1.0, "ann", "p", 1), Ambiguous(1.1, "ann", "p", 1)]

    assert violations([opened(), *invoked]) == {}
    assert violations([opened(), *invoked, got(2, 1, 1)]) == {}


def test_nothing_is_expected_of_a_window_that_was_closed() -> None:
    """It was not open to the end."""
    assert violations([opened(), *publish(1, 1), Closed(2.0, A)]) == {}


def test_what_is_among_the_dead_letters_is_accounted_for() -> None:
    """Set aside with a reason is not lost, and it is counted."""
    verdict = check(
        [opened(), *publish(1, 1), SetAside(2.0, "ann", "p", 1, "attempts_exhausted")]
    )

    assert verdict.is_good
    assert verdict.counts["good ones set aside"] == 1


def test_a_bad_message_belongs_among_the_dead_letters_and_nowhere_else() -> None:
    """Neither may it vanish nor reach a page."""
    bad = [opened(), *publish(1, 1, is_bad=True)]
    set_aside = SetAside(2.0, "ann", "p", 1, "malformed_body")

    assert violations([*bad, set_aside]) == {}
    assert violations(bad) == {Violation.NOT_ACCOUNTED: 1}
    assert violations([*bad, set_aside, got(2, 1, 1)]) == {Violation.UNEXPECTED: 1}


def test_a_message_that_was_confirmed_before_the_next_was_begun_comes_before_it() -> (
    None
):
    """Order per user, as a producer sees it."""
    swapped = [got(3, 2, 1), got(4, 1, 2)]

    assert violations([opened(), *publish(1, 1), *publish(2, 2), *swapped]) == {
        Violation.ORDER: 1
    }


def test_publishes_that_overlap_have_no_order() -> None:
    """The first was confirmed after the second was begun."""
    overlapping: list[Event] = [
        Invoked(1.0, "ann", "p", 1),
        Invoked(1.1, "ann", "p", 2),
        Confirmed(1.2, "ann", "p", 2),
        Confirmed(1.3, "ann", "p", 1),
    ]

    assert violations([opened(), *overlapping, got(2, 2, 1), got(3, 1, 2)]) == {}


def test_a_message_whose_publish_had_no_answer_may_come_late() -> None:
    """The broker may take it at any later time."""
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
def test_what_nobody_published_for_this_user_is_unexpected(received: Received) -> None:
    """Above all another user's message."""
    assert violations([opened(), *publish(1, 1), got(2, 1, 1), received])[
        Violation.UNEXPECTED
    ]


def test_the_same_position_twice_in_one_page_is_a_repeat() -> None:
    """Windows that resume by position get nothing twice."""
    events = [opened(), *publish(1, 1), got(2, 1, 1), got(3, 1, 1)]

    assert violations(events) == {Violation.REPEAT_POSITION: 1}


def test_the_same_position_after_a_reload_with_its_place_is_a_repeat() -> None:
    """The new page said where the old one was."""
    events = [
        opened(),
        *publish(1, 1),
        got(2, 1, 1),
        opened(keeps_place=True),
        got(3, 1, 1),
    ]

    assert violations(events) == {Violation.REPEAT_POSITION: 1}


def test_a_page_that_brings_no_place_may_get_again_what_was_not_acked() -> None:
    """At least once: that is what manual acks are for."""
    events = [opened(), *publish(1, 1), got(2, 1, 1), opened(), got(3, 1, 1)]
    verdict = check(events)

    assert verdict.is_good
    assert verdict.counts["again, not having been acked"] == 1


def test_a_message_with_an_id_at_two_positions_is_a_repeat() -> None:
    """It was stored twice within the dedupe window."""
    events = [opened(), *publish(1, 1, has_id=True), got(2, 1, 1), got(3, 1, 2)]

    assert violations(events) == {Violation.REPEAT_ID: 1}


def test_a_message_without_an_id_may_be_stored_twice_and_is_counted() -> None:
    """A crash between append and ack repeats it: at least once."""
    verdict = check([opened(), *publish(1, 1), got(2, 1, 1), got(3, 1, 2)])

    assert verdict.is_good
    assert verdict.counts["copies of messages without id"] == 1


def test_what_is_stored_again_is_stored_with_all_that_stood_behind_it() -> None:
    """The queue has it all once more: the inbox goes back, and then on, in order."""
    publishes = [event for number in (1, 2, 3, 4) for event in publish(number, number)]
    numbers = [1, 2, 3, 2, 3, 4]
    events = [opened(), *publishes]
    events += [got(9, number, offset) for offset, number in enumerate(numbers, 1)]

    assert check(events).is_good


def test_old_messages_that_are_stored_behind_newer_ones_are_out_of_order() -> None:
    """A bridge was frozen with 2 in hand, and others had gone on up to 4."""
    publishes = [
        event for number in (1, 2, 3, 4, 5) for event in publish(number, number)
    ]
    numbers = [1, 2, 3, 4, 2, 5]
    events = [opened(), *publishes]
    events += [got(9, number, offset) for offset, number in enumerate(numbers, 1)]

    assert violations(events) == {Violation.ORDER: 1}


def test_positions_have_no_holes_and_never_go_back() -> None:
    """A hole is something missed without a word, even if nobody had a confirm for it."""
    base = [opened(), *publish(1, 1), *publish(2, 2)]

    assert violations([*base, got(3, 1, 1), got(4, 2, 3)]) == {Violation.HOLE: 1}
    assert violations([*base, got(3, 1, 5), got(4, 2, 4)]) == {Violation.ORDER: 1}


def test_a_gap_that_is_told_and_an_epoch_that_changes_are_violations() -> None:
    """With a durable store neither may happen."""
    gap = Synced(2.0, A, is_complete=False, missed=3, reason="limit")
    reset = Received(4.0, A, "ann", "p", 2, "f-1")

    assert violations([opened(), gap]) == {Violation.GAP: 1}
    assert violations(
        [opened(), *publish(1, 1), *publish(2, 2), got(3, 1, 1), reset]
    ) == {Violation.EPOCH: 1}


def test_a_stock_client_that_comes_back_must_be_told_that_it_recovered() -> None:
    """Unlike one that connects for the first time."""
    assert violations([opened(), Connected(1.0, A, recovered=None)]) == {}
    assert violations([opened(), Connected(1.0, A, recovered=True)]) == {}
    assert violations([opened(), Connected(1.0, A, recovered=False)]) == {
        Violation.NOT_RECOVERED: 1
    }


def test_it_knows_at_any_time_what_is_under_way() -> None:
    """The run asks it whether all windows have all, before it ends."""
    checker = Checker()
    for event in [opened(), *publish(1, 1)]:
        checker.feed(event)
    assert list(checker.missing()) == [(A, ("p", 1))]

    checker.feed(got(2, 1, 1))
    assert list(checker.missing()) == []


def test_the_verdict_lists_every_kind_of_violation_and_is_good_without_any() -> None:
    """A table without the zeros would prove nothing."""
    verdict = check([opened(), Acked(1.0, A, "e-1", is_ok=True)])

    assert verdict.violations == dict.fromkeys(Violation.ALL, 0)
    assert verdict.is_good
    assert not Verdict({}, {Violation.LOST: 1}, ()).is_good


def test_the_pace_of_reconnects_is_counted_from_the_first_fault_on() -> None:
    """How windows come at first is the test's own doing, and no storm."""
    came = [Connected(t, A, recovered=None) for t in (0.1, 0.2, 0.3, 0.4, 0.5)]
    again = [Connected(t, A, recovered=True) for t in (1.0, 1.5, 1.99, 2.1, 4.0)]

    verdict = check([opened(), *came, FaultBegan(0.9, 1, "a fault"), *again])

    assert verdict.counts["connects"] == 10
    assert verdict.counts[MOST_CONNECTS] == 3


def test_bridges_that_have_windows_are_counted() -> None:
    """A fleet whose windows are all at one bridge shows nothing."""
    assert check([Spread(1.0, [3, 0, 4])]).counts["bridges with windows"] == 2
