"""The checker of presence, with synthetic histories of one user."""

from datetime import UTC, datetime

import pytest

from tests.faults.suite.checker import check
from tests.faults.suite.history import (
    Closed,
    Connected,
    Disconnected,
    Event,
    FaultEnded,
    FaultStarted,
    Opened,
    PresenceCounted,
    PresenceReported,
)
from tests.faults.suite.presence_checker import DEBOUNCE_S, PresenceViolation
from tests.faults.suite.world import CLOCK_JUMP_S, time_of

A, B = "ann.a", "ann.b"
READ_T = 500.0  # events are read at the end of a run


def opened(window: str = A) -> list[Event]:
    return [Opened(0, window, "ann", keeps_position=False), connected(1, window)]


def connected(t: float, window: str = A) -> Connected:
    return Connected(t, window, recovered=None)


def disconnected(t: float, window: str = A) -> Disconnected:
    return Disconnected(t, window, "")


def left(t: float, window: str = A) -> Disconnected:
    return Disconnected(t, window, "io client disconnect")


def reported(
    seq: int, windows: int, *, at: float = 50, id_: str | None = None
) -> PresenceReported:
    event_id = f"id.{seq}" if id_ is None else id_
    return PresenceReported(READ_T, "ann", windows, seq, event_id, f"at {at}", at)


def counted(windows: int, *, bridge: str = "1") -> PresenceCounted:
    return PresenceCounted(READ_T, bridge, {"ann": windows})


def fault(kind: str, from_t: float, upto_t: float) -> list[Event]:
    return [FaultStarted(from_t, 1, kind), FaultEnded(upto_t, 1, kind, happened=True)]


def violations(*events: Event | list[Event]) -> dict[str, int]:
    """Return the violations whose count is not zero, in events ordered by their times."""
    listed: list[Event] = []
    for each in events:
        listed += each if isinstance(each, list) else [each]
    listed.sort(key=lambda event: event.t)
    return {kind: n for kind, n in check(listed).violations.items() if n}


def test_a_user_who_comes_and_goes_is_no_violation() -> None:
    """Nor is one who came back before the end."""
    gone: list[Event] = [
        *(*opened(), disconnected(9)),
        *(reported(1, 1, at=1), reported(2, 0, at=12.5)),
    ]

    assert violations(gone) == {}
    assert violations(gone, counted(0)) == {}
    assert violations(gone, connected(20), reported(3, 2, at=20), counted(1)) == {}


def test_a_repeat_of_an_event_is_the_same() -> None:
    """It may come at any time; a `seq` belongs to one event."""
    base: list[Event] = [*opened(), disconnected(9), reported(1, 1), reported(2, 0)]
    wrong = {PresenceViolation.SEQ: 1}

    assert violations(base, reported(1, 1)) == {}
    assert violations(base, reported(1, 2)) == wrong
    assert violations(base, reported(1, 1, at=51)) == wrong
    assert violations(base, reported(1, 1, id_="other")) == wrong


def test_the_first_copies_of_events_come_in_the_order_of_seq() -> None:
    """A worker drops an event with a lower `seq`."""
    base: list[Event] = [*opened(), disconnected(9)]

    assert violations(base, reported(2, 0), reported(1, 1)) == {
        PresenceViolation.SEQ: 1
    }


@pytest.mark.parametrize("windows", [[1, 1], [0], [1, 0, 0], [1, 0, 1, 2]])
def test_online_and_offline_alternate(windows: list[int]) -> None:
    """The first event about a user is `user.online`."""
    events: list[Event] = [reported(seq, count) for seq, count in enumerate(windows, 1)]

    assert violations(opened(), disconnected(9), events) == {PresenceViolation.TWICE: 1}


def offline(*events: Event | list[Event], at: float = 50) -> dict[str, int]:
    """Return the violations if ann was reported offline at this time."""
    return violations(*events, reported(1, 1, at=1), reported(2, 0, at=at))


def test_a_user_with_a_window_is_not_reported_offline() -> None:
    """Whichever window it is; in the last second it may not be noted yet."""
    false = {PresenceViolation.FALSE_OFFLINE: 1}

    assert offline(opened()) == false
    assert offline(opened(), opened(B), disconnected(9)) == false
    assert offline(opened(), disconnected(9), connected(48)) == false
    assert offline(opened(), disconnected(9), connected(49.2)) == {}
    assert offline(opened(), Closed(9, A)) == {}


def test_a_user_is_not_reported_offline_before_the_debounce() -> None:
    """It is 3 s; the suite may record 2.5 s late that the page has left."""
    assert offline(opened(), left(50 - DEBOUNCE_S)) == {}
    assert offline(opened(), left(49.4)) == {}
    assert offline(opened(), left(49.7)) == {PresenceViolation.FALSE_OFFLINE: 1}


def test_a_page_may_notice_late_that_the_bridge_has_closed_it() -> None:
    """It did not answer a ping; a page that leaves may not have noticed if it polls."""
    polling = Opened(0, "ann.poll", "ann", keeps_position=False)
    polled: list[Event] = [polling, connected(1, "ann.poll"), left(49.7, "ann.poll")]

    assert offline(opened(), disconnected(57)) == {}
    assert offline(opened(), disconnected(59)) == {PresenceViolation.FALSE_OFFLINE: 1}
    assert offline(polled) == {}


def test_a_page_notices_even_later_that_its_network_was_frozen() -> None:
    """But a page that stays open was there."""
    false = {PresenceViolation.FALSE_OFFLINE: 1}
    frozen = fault("network between pages and bridge: frozen", 41, 49)
    other = fault("network between bridge and RabbitMQ: frozen", 41, 49)
    earlier = fault("network between pages and bridge: frozen", 31, 39)

    assert offline(opened(), frozen, left(49.7)) == {}
    assert offline(opened(), frozen, disconnected(72)) == false
    assert offline(opened(), other, left(49.7)) == false
    assert offline(opened(), earlier, left(49.7)) == false


def test_a_bridge_without_redis_may_note_a_window_late() -> None:
    """A window that it has had for longer is in the store."""
    frozen = fault("network between a bridge and Redis: frozen", 41, 49)

    assert offline(opened(), frozen, disconnected(30), connected(41)) == {}
    assert offline(opened(), frozen) == {PresenceViolation.FALSE_OFFLINE: 1}


def test_users_of_a_bridge_that_stood_still_may_leave() -> None:
    """Its leases have ended."""
    long = fault("bridge: frozen until RabbitMQ drops its connection", 25, 47)
    two = [*fault("Redis: frozen", 31, 37), *fault("Redis: frozen", 40, 46)]

    assert offline(opened(), long) == {}
    assert offline(opened(), two) == {}


def test_at_the_end_bridges_and_the_last_event_agree_with_the_windows() -> None:
    """Each bridge counts the windows of all bridges."""
    base = [*opened(), *opened(B)]
    gone: list[Event] = [*opened(), disconnected(9)]
    wrong = {PresenceViolation.END: 1}

    assert violations(base, reported(1, 1), counted(2)) == {}
    assert violations(base, counted(2)) == wrong
    assert violations(base, reported(1, 1), counted(2), counted(1, bridge="2")) == wrong
    assert violations(base, reported(1, 1), counted(-1)) == wrong
    assert violations(gone, reported(1, 1), counted(0)) == wrong
    assert violations(gone, counted(0)) == {}


def test_only_the_last_count_of_a_bridge_matters() -> None:
    """The run asks until it is right."""
    assert violations(opened(), reported(1, 1), counted(0), counted(1)) == {}


def test_windows_that_close_after_the_count_do_not_matter() -> None:
    """The history continues while the run ends."""
    end = disconnected(READ_T + 1)

    assert violations(opened(), reported(1, 1), counted(1), end) == {}


@pytest.mark.parametrize("jump_s", [0, CLOCK_JUMP_S, -CLOCK_JUMP_S])
def test_the_time_of_a_decision_is_known_although_a_clock_jumps(jump_s: float) -> None:
    """The faults know by how much."""
    now_s = 1_800_000_000.0
    at = datetime.fromtimestamp(now_s - 60 + jump_s, UTC).isoformat()

    assert time_of(at, now_s=now_s, t=100.0) == pytest.approx(40.0)
