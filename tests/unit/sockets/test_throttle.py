"""Rooms with throttled keys: what each window receives, and with which position."""

import pytest

from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions
from bridge.core.position import parse_position
from bridge.sockets.window import Window
from tests.unit.sockets.rooms_fakes import (
    RoomsFixture,
    frames,
    session_of,
    stored,
)


@pytest.fixture
def fixture() -> RoomsFixture:
    """Rooms without windows, at the time 100."""
    return RoomsFixture()


def value(
    offset: int,
    key: str = "job",
    throttle_s: float | None = 1.0,
    deadline_s: float | None = None,
) -> Stored:
    """Return a message of a throttled key as the live feed brings it."""
    options = MessageOptions(key=key, throttle_s=throttle_s)
    return stored("alice", offset, deadline_s, options=options)


def emit(fixture: RoomsFixture, *messages: Stored) -> None:
    """Emit each message as a batch of its own."""
    for message in messages:
        fixture.rooms.emit([message])


def received(window: Window) -> list[tuple[int, ...]]:
    """Return the offset of each message, what its position covers, and without which."""
    found: list[tuple[int, ...]] = []
    for packet in frames(window):
        _, number, position = packet.decode().removeprefix("42[").split(",")
        parsed = parse_position(position[1:-2])
        assert str(parsed) == position[1:-2]
        found.append((int(number), parsed.newest, *parsed.late))
    return found


def test_a_window_receives_the_first_and_the_last_of_an_interval(
    fixture: RoomsFixture,
) -> None:
    """The others were replaced, so the position of the last one covers them."""
    one, two = fixture.window("alice"), fixture.window("alice", polls=True)

    emit(fixture, value(1), value(2), value(3), value(4))
    assert received(one) == received(two) == [(1, 1)]
    fixture.timers.pass_until(100.9)
    assert received(one) == [(1, 1)]
    fixture.timers.pass_until(101.0)

    assert received(one) == received(two) == [(1, 1), (4, 4)]
    samples = fixture.metrics.registry
    assert samples.get_sample_value("bridge_throttled_total") == 2
    assert samples.get_sample_value("bridge_emitted_total") == 4


def test_no_timer_runs_while_nothing_is_held_back(fixture: RoomsFixture) -> None:
    """Thousands of keys may be idle."""
    fixture.window("alice")
    emit(fixture, value(1))
    assert fixture.timers.pending == []

    emit(fixture, value(2), value(3, "other"), value(4, "other"))
    assert len(fixture.timers.pending) == 1
    fixture.timers.pass_until(200.0)
    assert fixture.timers.pending == []


def test_positions_do_not_pass_what_is_held_back(fixture: RoomsFixture) -> None:
    """A page that reconnects with one of them receives the value that it lacks."""
    window = fixture.window("alice")

    emit(fixture, value(1), value(2), stored("alice", 3), stored("alice", 4))
    assert received(window) == [(1, 1), (3, 3, 2), (4, 4, 2)]
    assert (window.offset, fixture.rooms.received(window)) == (4, 1)
    emit(fixture, value(5), stored("alice", 6))
    assert fixture.rooms.received(window) == 4
    fixture.timers.pass_until(101.0)

    assert received(window)[3:] == [(6, 6, 5), (5, 6)]
    assert fixture.rooms.received(window) == 6


def test_values_that_are_due_together_are_written_in_order(
    fixture: RoomsFixture,
) -> None:
    """Each has a position that does not pass the next one."""
    window = fixture.window("alice")

    emit(fixture, *[value(offset, key) for offset, key in enumerate("abcabc", 1)])
    emit(fixture, value(7, "slow", 9), value(8, "slow", 9), stored("alice", 9))
    fixture.timers.pass_until(101.0)

    assert received(window)[3:] == [
        *((7, 7, 4, 5, 6), (9, 9, 4, 5, 6, 8)),
        *((4, 9, 5, 6, 8), (5, 9, 6, 8), (6, 9, 8)),
    ]
    fixture.timers.pass_until(109.0)
    assert received(window)[8:] == [(8, 9)]


def test_an_ephemeral_message_has_a_position_that_lacks_nothing(
    fixture: RoomsFixture,
) -> None:
    """It carries the position that the window has."""
    window = fixture.window("alice")
    emit(fixture, value(1), value(2))

    fixture.rooms.emit_ephemeral([Message("alice", "message", b"77", 0.0)])

    assert received(window) == [(1, 1), (77, 2, 2)]


def test_a_message_of_the_key_without_an_interval_is_written_at_once(
    fixture: RoomsFixture,
) -> None:
    """What was held back is older than it, and must not follow."""
    window = fixture.window("alice")

    emit(fixture, value(1), value(2), value(3, throttle_s=None))
    fixture.timers.pass_until(200.0)

    assert received(window) == [(1, 1), (3, 3)]


def test_a_window_that_connects_in_an_interval_receives_nothing_twice(
    fixture: RoomsFixture,
) -> None:
    """It has read from the inbox what is held back from the others."""
    old = fixture.window("alice")
    emit(fixture, value(1), value(2, "a"), value(3, "a"))
    new = fixture.window("alice", offset=3)
    emit(fixture, value(4), stored("alice", 5))
    assert received(new) == [(5, 5, 3, 4)]
    assert fixture.rooms.received(new) == 3
    fixture.timers.pass_until(101.0)

    assert received(old) == [(1, 1), (2, 2), (5, 5, 3, 4), (3, 5, 4), (4, 5)]
    assert received(new) == [(5, 5, 3, 4), (4, 5)]
    emit(fixture, stored("alice", 6))
    assert old.is_in_group
    assert new.is_in_group


def test_a_window_that_reads_ahead_receives_nothing_twice(
    fixture: RoomsFixture,
) -> None:
    """Its replay has read messages that the live feed brings later."""
    old = fixture.window("alice")
    emit(fixture, value(1))
    ahead = fixture.window("alice", offset=3)
    emit(fixture, value(2), value(3), value(4))
    fixture.timers.pass_until(200.0)

    assert received(old) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert received(ahead) == [(4, 4)]


def test_a_window_that_falls_behind_takes_along_what_it_lacks(
    fixture: RoomsFixture,
) -> None:
    """Its position covers the value only when that is written."""
    slow, good = fixture.window("alice"), fixture.window("alice")
    emit(fixture, value(1), value(2), value(3, "b"), value(4, "b"), stored("alice", 5))
    session_of(slow).is_full = True

    emit(fixture, stored("alice", 6))
    assert fixture.behind == [slow]
    assert (slow.offset, fixture.rooms.received(slow)) == (1, 1)
    assert [(one.message.data, one.offset) for one in fixture.late] == [
        *((b"2", 3), (b"4", 5))
    ]
    fixture.timers.pass_until(101.0)
    assert received(slow) == [(1, 1), (3, 3, 2), (5, 5, 2, 4)]
    assert received(good)[2:] == [(5, 5, 2, 4), (6, 6, 2, 4), (2, 6, 4), (4, 6)]


def test_a_window_may_fall_behind_at_the_end_of_the_interval(
    fixture: RoomsFixture,
) -> None:
    """Nothing is written to it then, and nothing is lost."""
    slow, polling = fixture.window("alice"), fixture.window("alice", polls=True)
    emit(fixture, value(1), value(2), stored("alice", 3))
    for window in (slow, polling):
        session_of(window).is_full = True

    fixture.timers.pass_until(101.0)

    assert fixture.behind == [slow, polling]
    assert slow.offset == polling.offset == 1
    assert [(one.message.data, one.offset) for one in fixture.late] == [(b"2", 3)] * 2


def test_a_lost_part_of_the_feed_is_read_from_the_inbox(fixture: RoomsFixture) -> None:
    """What the window lacks from before the gap goes with it."""
    window = fixture.window("alice")
    emit(fixture, value(1), value(2), stored("alice", 3), stored("alice", 6))

    assert fixture.behind == [window]
    assert window.offset == 1
    assert [(one.message.data, one.offset) for one in fixture.late] == [(b"2", 3)]


def test_a_value_that_expires_while_it_is_held_back_is_not_written(
    fixture: RoomsFixture,
) -> None:
    """As for all messages."""
    window = fixture.window("alice")
    emit(fixture, value(1), value(2, deadline_s=1.0))
    fixture.timers.pass_until(101.0)

    assert received(window) == [(1, 1)]
    assert fixture.metrics.registry.get_sample_value("bridge_left_out_total") == 1
    assert fixture.rooms.received(window) == 2


def test_the_timer_ends_with_the_room(fixture: RoomsFixture) -> None:
    """The messages are in the inbox, and a window that connects later reads them there."""
    window = fixture.window("alice")
    emit(fixture, value(1), value(2))
    assert fixture.timers.pending

    fixture.rooms.leave(window)
    assert fixture.timers.pending == []

    fixture.window("alice", offset=2)
    emit(fixture, value(3), value(4))
    fixture.rooms.reset("alice")
    assert fixture.timers.pending == []


def test_nothing_is_held_back_without_open_gates(fixture: RoomsFixture) -> None:
    """Windows behind closed gates read the inbox."""
    window = fixture.window("alice", is_open=False)
    emit(fixture, value(1), value(2))
    assert fixture.timers.pending == []

    window.advance(2)
    assert fixture.rooms.open_gate(window)
    emit(fixture, value(3))
    assert received(window) == [(3, 3)]


def test_an_error_does_not_lose_what_is_held_back(fixture: RoomsFixture) -> None:
    """It is due once more after the interval."""
    window = fixture.window("alice")
    emit(fixture, value(1), value(2))
    session_of(window).is_broken = True
    with pytest.raises(ZeroDivisionError):
        fixture.timers.pass_until(101.0)
    session_of(window).is_broken = False

    fixture.timers.pass_until(102.0)
    assert received(window) == [(1, 1), (2, 2)]
