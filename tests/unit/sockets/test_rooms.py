"""Rooms: which windows a user has, and which messages each of them gets."""

from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.frames import text_frame
from bridge.core.message import Message, Stored
from bridge.enums import PresenceChange, Stage
from tests.unit.sockets.rooms_fakes import (
    RoomsFixture,
    frames,
    session_of,
    stored,
    writes,
)


@pytest.fixture
def fixture() -> RoomsFixture:
    """Rooms without windows."""
    return RoomsFixture()


def test_a_message_is_written_to_the_windows_of_its_user_with_an_open_gate(
    fixture: RoomsFixture,
) -> None:
    """All of them get the same frame, with the position as the last argument."""
    one, two, closed = (
        fixture.window("alice"),
        fixture.window("alice"),
        fixture.window("alice", is_open=False),
    )
    other = fixture.window("bob")

    fixture.rooms.emit([stored("alice", 1), stored("nobody", 1)])

    assert frames(one) == frames(two) == [b'42["message",1,"e-1"]']
    assert writes(one)[0] is writes(two)[0]
    assert frames(closed) == frames(other) == []


def test_a_gate_stays_closed_while_the_feed_is_ahead(fixture: RoomsFixture) -> None:
    """The messages that passed the gate must be read from the inbox first."""
    window = fixture.window("alice", is_open=False)
    fixture.rooms.emit([stored("alice", 1)])

    assert not fixture.rooms.open_gate(window)
    window.advance(1)
    assert fixture.rooms.open_gate(window)


def test_messages_that_a_replay_has_read_are_not_written_again(
    fixture: RoomsFixture,
) -> None:
    """The replay may be ahead of the feed."""
    window = fixture.window("alice", offset=2)

    fixture.rooms.emit([stored("alice", offset) for offset in (1, 2, 3)])

    assert frames(window) == [b'42["message",3,"e-3"]']


def test_an_expired_message_is_counted_and_not_written(fixture: RoomsFixture) -> None:
    """Its deadline may pass between the pipeline and the rooms."""
    window = fixture.window("alice")

    fixture.rooms.emit([stored("alice", 1, deadline_s=1.0), stored("alice", 2)])

    assert frames(window) == [b'42["message",2,"e-2"]']
    assert fixture.metrics.registry.get_sample_value("bridge_left_out_total") == 1


def test_a_jump_of_the_clock_expires_no_message(fixture: RoomsFixture) -> None:
    """Its deadline counts in real time."""
    window = fixture.window("alice")
    message = stored("alice", 1, deadline_s=time() + 600)
    message.message.taken_s = time()
    fixture.clock_ahead_s = 8 * 86_400.0

    fixture.rooms.emit([message])

    assert frames(window) == [b'42["message",1,"e-1"]']


def test_messages_of_one_batch_are_joined_into_one_write(fixture: RoomsFixture) -> None:
    """Each write costs a system call. Expired messages are left out."""
    window, other = fixture.window("alice"), fixture.window("bob")

    fixture.rooms.emit(
        [
            stored("alice", 1),
            stored("bob", 1),
            stored("alice", 2, deadline_s=1.0),
            stored("alice", 3),
        ]
    )

    assert frames(window) == [b'42["message",1,"e-1"]', b'42["message",3,"e-3"]']
    assert writes(window) == [b"".join(text_frame(each) for each in frames(window))]
    assert window.offset == 3
    assert len(writes(other)) == 1


def test_only_the_window_over_its_limit_falls_behind(
    fixture: RoomsFixture,
) -> None:
    """Its gate closes until it has read the missing messages from the inbox."""
    slow, good = fixture.window("alice"), fixture.window("alice")
    session_of(slow).is_full = True
    fixture.rooms.emit([stored("alice", 1)])
    session_of(slow).is_full = False
    fixture.rooms.emit([stored("alice", 2)])

    assert fixture.behind == [slow]
    assert not slow.is_live
    assert (slow.offset, frames(slow)) == (0, [])
    assert len(frames(good)) == 2
    assert not fixture.rooms.open_gate(slow)  # until it has read what it missed
    slow.advance(2)
    assert fixture.rooms.open_gate(slow)
    fixture.rooms.emit([stored("alice", 3)])
    assert len(frames(slow)) == 1


@pytest.mark.parametrize("lost", [[2], [2, 3], [3], [2, 4]])
def test_after_a_gap_in_the_feed_windows_read_the_inbox(
    fixture: RoomsFixture, lost: list[int]
) -> None:
    """Without this check a window would miss messages silently."""
    grouped, ahead = fixture.window("alice"), fixture.window("alice", is_open=False)
    fixture.rooms.emit([stored("alice", 1)])
    ahead.advance(5)
    assert fixture.rooms.open_gate(ahead)

    fixture.rooms.emit([stored("alice", n) for n in (2, 3, 4, 5) if n not in lost])

    assert fixture.behind == [grouped]
    assert frames(grouped) == [b'42["message",1,"e-1"]']
    assert grouped.offset == 1
    fixture.rooms.emit([stored("alice", 6)])
    assert frames(ahead)[-1] == b'42["message",6,"e-6"]'


def test_an_exception_in_one_room_is_a_gap_in_the_others(
    fixture: RoomsFixture,
) -> None:
    """At the next message their windows read the inbox."""
    faulty, other = fixture.window("alice"), fixture.window("bob")
    session_of(faulty).is_broken = True
    with pytest.raises(ZeroDivisionError):
        fixture.rooms.emit([stored("alice", 1), stored("bob", 1)])
    session_of(faulty).is_broken = False

    fixture.rooms.emit([stored("alice", 2), stored("bob", 2)])

    assert fixture.behind == [faulty, other]
    assert frames(faulty) == frames(other) == []


def test_expired_messages_are_not_a_gap(fixture: RoomsFixture) -> None:
    """Also if a whole batch has expired."""
    window = fixture.window("alice")

    fixture.rooms.emit([stored("alice", 1, deadline_s=1.0)])
    fixture.rooms.emit([stored("alice", 2)])

    assert frames(window) == [b'42["message",2,"e-2"]']
    assert not fixture.behind


def test_a_room_is_deleted_with_its_last_window(fixture: RoomsFixture) -> None:
    """Rooms of users without windows would be a memory leak."""
    one, two = fixture.window("alice"), fixture.window("alice")

    assert not fixture.rooms.leave(one)
    assert not fixture.rooms.leave(one)
    assert fixture.rooms.leave(two)
    assert not fixture.rooms.leave(two)
    assert fixture.rooms.user_count == 0
    assert len(fixture.rooms) == 0


def test_the_first_and_the_last_window_of_a_user_are_in_the_journal(
    fixture: RoomsFixture,
) -> None:
    """Operators see when a user came and went, and not each window in between."""
    one, two = fixture.window("alice"), fixture.window("alice")
    fixture.window("bob")
    for window in (one, two, two):
        fixture.rooms.leave(window)
    fixture.window("alice")

    changes = fixture.rooms.journal.presence_of("alice", limit=9)
    assert [change for _, change in changes] == [
        PresenceChange.CONNECTED,
        PresenceChange.DISCONNECTED,
        PresenceChange.CONNECTED,
    ]
    assert all(0 <= time() - at_s < 60 for at_s, _ in changes)


def test_the_first_and_the_last_window_of_a_user_are_noted(
    fixture: RoomsFixture,
) -> None:
    """The others change nothing for workers that ask who is online."""
    one, two = fixture.window("alice"), fixture.window("alice")
    assert fixture.rooms.reserve("ben", at_most=5)  # refused, or gone before it joined
    fixture.rooms.release("ben")
    fixture.rooms.leave(one)
    assert fixture.presence == [("alice", 1)]

    assert fixture.rooms.reserve("alice", at_most=5)
    fixture.rooms.leave(two)
    fixture.rooms.leave(two)
    assert fixture.presence == [("alice", 1), ("alice", 0)]


def test_a_reserved_room_outlives_its_last_window(fixture: RoomsFixture) -> None:
    """When a page reloads, its old window leaves while the new one is being admitted."""
    old = fixture.window("alice")
    assert fixture.rooms.reserve("alice", at_most=5)

    assert not fixture.rooms.leave(old)
    assert fixture.rooms.release("alice")
    assert fixture.rooms.user_count == 0


def test_a_user_whose_first_window_is_being_admitted_is_not_listed(
    fixture: RoomsFixture,
) -> None:
    """A list of who is online contains no user without a window."""
    fixture.window("alice")
    assert fixture.rooms.reserve("bob", at_most=5)

    assert list(fixture.rooms.users) == ["alice"]
    assert fixture.rooms.user_count == 2


def test_reserved_places_count_towards_the_limit(fixture: RoomsFixture) -> None:
    """Otherwise any number of windows could be admitted while the store is slow."""
    fixture.window("alice")
    assert fixture.rooms.reserve("alice", at_most=2)
    assert not fixture.rooms.reserve("alice", at_most=2)
    fixture.rooms.release("alice")
    assert fixture.rooms.reserve("alice", at_most=2)
    assert fixture.rooms.reserve("bob", at_most=1)


@given(
    st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_a_room_holds_the_windows_of_its_user_only(
    users: list[str], choose: st.DataObject
) -> None:
    """For any user names."""
    fixture = RoomsFixture()
    windows = {user: fixture.window(user) for user in users}
    user = choose.draw(st.sampled_from(users))

    assert fixture.rooms.windows_of(user) == (windows[user],)
    assert set(fixture.rooms) == set(windows.values())
    assert len(fixture.rooms) == len(windows)


def test_the_journal_records_how_many_windows_a_message_was_written_to(
    fixture: RoomsFixture,
) -> None:
    """For `bridge trace`. Windows that had it already or whose gate is closed do not count."""
    fixture.window("alice")
    fixture.window("alice", offset=1)
    fixture.window("alice", is_open=False)

    fixture.rooms.emit([stored("alice", 1), stored("alice", 2), stored("nobody", 1)])
    over = Message("alice", "message", b"3", 0.0, "m", 1.0)
    fixture.rooms.emit([Stored(over, 3)])

    entries = fixture.rooms.journal.of("alice", "m", offsets=[1, 2, 3])
    assert [(each.stage, each.offset, each.windows) for each in entries] == [
        (Stage.WRITTEN, 1, 1),
        (Stage.WRITTEN, 2, 2),
        (Stage.EXPIRED, 3, None),
    ]
    assert fixture.rooms.journal.last_connect_s("alice") == 0
    assert fixture.rooms.journal.last_connect_s("nobody") is None


def test_an_ephemeral_message_changes_no_position(fixture: RoomsFixture) -> None:
    """It carries the position that the window has, and the next message finds no gap."""
    one = fixture.window("alice")
    ahead = fixture.window("alice", offset=2)
    closed = fixture.window("alice", is_open=False)
    fixture.rooms.emit([stored("alice", 1)])

    fixture.rooms.emit_ephemeral([stored("alice", 7).message])
    fixture.rooms.emit([stored("alice", 2), stored("alice", 3)])

    assert frames(one) == [
        b'42["message",1,"e-1"]',
        b'42["message",7,"e-1"]',
        b'42["message",2,"e-2"]',
        b'42["message",3,"e-3"]',
    ]
    assert frames(ahead) == [b'42["message",7,"e-2"]', b'42["message",3,"e-3"]']
    assert frames(closed) == []
    assert not fixture.behind


def test_a_window_that_reads_too_slowly_misses_ephemeral_messages(
    fixture: RoomsFixture,
) -> None:
    """They are in no inbox, so it could not read them later."""
    full, other = fixture.window("alice"), fixture.window("alice")
    session_of(full).is_full = True

    fixture.rooms.emit_ephemeral([stored("alice", 7).message])

    assert frames(full) == []
    assert frames(other) == [b'42["message",7,"e-0"]']
    assert not fixture.behind
