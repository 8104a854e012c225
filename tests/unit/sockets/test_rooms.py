"""Rooms: who is where, and who gets what. Windows are real, their connections are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.frames import text_frame
from bridge.core.message import Message, Stored
from bridge.enums import Stage
from tests.unit.sockets.rooms_fakes import House, frames, line, pieces, stored


@pytest.fixture
def house() -> House:
    """Nobody is in."""
    return House()


def test_a_message_is_written_to_the_open_windows_of_its_user(house: House) -> None:
    """One frame for all of them, with the position as the last argument."""
    one, two, shut = (
        house.window("alice"),
        house.window("alice"),
        house.window("alice", is_open=False),
    )
    other = house.window("bob")

    house.rooms.feed([stored("alice", 1), stored("nobody", 1)])

    assert frames(one) == frames(two) == [b'42["message",1,"e-1"]']
    assert pieces(one)[0] is pieces(two)[0]
    assert frames(shut) == frames(other) == []
    assert house.delivered == [("alice", 1)]


def test_a_gate_stays_shut_while_the_feed_is_ahead(house: House) -> None:
    """What passed it must be read from the inbox first."""
    window = house.window("alice", is_open=False)
    house.rooms.feed([stored("alice", 1)])

    assert not house.rooms.open_gate(window)
    window.offset = 1
    assert house.rooms.open_gate(window)


def test_what_a_window_has_read_in_its_replay_is_not_written_again(
    house: House,
) -> None:
    """The replay may be ahead of the feed."""
    window = house.window("alice", offset=2)

    house.rooms.feed([stored("alice", offset) for offset in (1, 2, 3)])

    assert frames(window) == [b'42["message",3,"e-3"]']


def test_an_expired_message_is_counted_and_not_written(house: House) -> None:
    """Its deadline may pass between the pump and here."""
    window = house.window("alice")

    house.rooms.feed([stored("alice", 1, deadline_s=1.0), stored("alice", 2)])

    assert frames(window) == [b'42["message",2,"e-2"]']
    assert house.metrics.registry.get_sample_value("bridge_left_out_total") == 1


def test_messages_of_one_batch_are_written_in_one_piece(house: House) -> None:
    """A write costs a system call, whatever it holds; what expired is not in it."""
    window, other = house.window("alice"), house.window("bob")

    house.rooms.feed(
        [
            stored("alice", 1),
            stored("bob", 1),
            stored("alice", 2, deadline_s=1.0),
            stored("alice", 3),
        ]
    )

    assert frames(window) == [b'42["message",1,"e-1"]', b'42["message",3,"e-3"]']
    assert pieces(window) == [b"".join(text_frame(each) for each in frames(window))]
    assert window.offset == 3
    assert len(pieces(other)) == 1
    assert house.delivered == [("alice", 3), ("bob", 1)]


def test_a_window_that_is_full_goes_back_to_the_inbox_and_no_other(
    house: House,
) -> None:
    """It gets nothing more from here, and what it did not take is not delivered."""
    slow, good = house.window("alice"), house.window("alice")
    line(slow).is_full = True
    house.rooms.feed([stored("alice", 1)])
    line(slow).is_full = False
    house.rooms.feed([stored("alice", 2)])

    assert house.behind == [slow]
    assert not slow.is_live
    assert (slow.offset, frames(slow)) == (0, [])
    assert len(frames(good)) == 2
    assert not house.rooms.open_gate(slow)  # until it has read what passed it
    slow.offset = 2
    assert house.rooms.open_gate(slow)
    house.rooms.feed([stored("alice", 3)])
    assert len(frames(slow)) == 1


def test_what_a_full_window_did_not_take_is_not_delivered(house: House) -> None:
    """The delivered mark stays before it."""
    line(house.window("alice")).is_full = True

    house.rooms.feed([stored("alice", 1)])

    assert not house.delivered


@pytest.mark.parametrize("lost", [[2], [2, 3], [3], [2, 4]])
def test_a_hole_in_the_feed_sends_the_windows_back_to_the_inbox(
    house: House, lost: list[int]
) -> None:
    """Whatever lost it: a hole that nobody sees is what must not be."""
    level, ahead = house.window("alice"), house.window("alice", is_open=False)
    house.rooms.feed([stored("alice", 1)])
    ahead.offset = 5
    assert house.rooms.open_gate(ahead)

    house.rooms.feed([stored("alice", n) for n in (2, 3, 4, 5) if n not in lost])

    assert house.behind == [level]
    assert frames(level) == [b'42["message",1,"e-1"]']
    assert level.offset == 1
    house.rooms.feed([stored("alice", 6)])
    assert frames(ahead)[-1] == b'42["message",6,"e-6"]'


def test_a_fault_in_one_room_is_a_hole_in_the_others_and_no_more(
    house: House,
) -> None:
    """They go on with the next message, from the inbox."""
    faulty, other = house.window("alice"), house.window("bob")
    line(faulty).is_broken = True
    with pytest.raises(ZeroDivisionError):
        house.rooms.feed([stored("alice", 1), stored("bob", 1)])
    line(faulty).is_broken = False

    house.rooms.feed([stored("alice", 2), stored("bob", 2)])

    assert house.behind == [faulty, other]
    assert frames(faulty) == frames(other) == []


def test_what_expired_in_the_feed_is_no_hole(house: House) -> None:
    """All of a batch, too."""
    window = house.window("alice")

    house.rooms.feed([stored("alice", 1, deadline_s=1.0)])
    house.rooms.feed([stored("alice", 2)])

    assert frames(window) == [b'42["message",2,"e-2"]']
    assert not house.behind


@pytest.mark.parametrize("reason", ["manual acks", "polling"])
def test_writing_is_not_delivering_where_something_else_is(
    house: House, reason: str
) -> None:
    """Manual: the page's ack. Polling: that it is fetched."""
    window = house.window(
        "alice", manual=reason == "manual acks", polls=reason == "polling"
    )

    house.rooms.feed([stored("alice", 1)])

    assert len(frames(window)) == 1
    assert not house.delivered


def test_a_room_goes_with_its_last_window(house: House) -> None:
    """Rooms of users who left would be a leak."""
    one, two = house.window("alice"), house.window("alice")

    assert not house.rooms.leave(one)
    assert not house.rooms.leave(one)
    assert house.rooms.leave(two)
    assert not house.rooms.leave(two)
    assert list(house.rooms.users) == []
    assert len(house.rooms) == 0


def test_a_room_is_kept_for_a_window_on_its_way(house: House) -> None:
    """The page that reloads: its old window must not take the room along."""
    old = house.window("alice")
    assert house.rooms.expect("alice", at_most=5)

    assert not house.rooms.leave(old)
    assert house.rooms.expect_no_more("alice")
    assert list(house.rooms.users) == []


def test_places_that_are_kept_count_for_the_cap(house: House) -> None:
    """Or any number could slip in while the store takes its time."""
    house.window("alice")
    assert house.rooms.expect("alice", at_most=2)
    assert not house.rooms.expect("alice", at_most=2)
    house.rooms.expect_no_more("alice")
    assert house.rooms.expect("alice", at_most=2)
    assert house.rooms.expect("bob", at_most=1)


@given(
    st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_a_users_room_holds_that_users_windows_and_no_other(
    users: list[str], choose: st.DataObject
) -> None:
    """Whatever users are called: as a session id, too."""
    house = House()
    windows = {user: house.window(user) for user in users}
    user = choose.draw(st.sampled_from(users))

    assert house.rooms.windows_of(user) == (windows[user],)
    assert set(house.rooms) == set(windows.values())
    assert len(house.rooms) == len(windows)


def test_the_journal_hears_to_how_many_windows_a_message_went(house: House) -> None:
    """For `bridge trace`: those that had it already, or whose gate is shut, not counted."""
    house.window("alice")
    house.window("alice", offset=1)
    house.window("alice", is_open=False)

    house.rooms.feed([stored("alice", 1), stored("alice", 2), stored("nobody", 1)])
    over = Message("alice", "message", b"3", 0.0, "m", 1.0)
    house.rooms.feed([Stored(over, 3)])

    told = house.rooms.journal.of("alice", "m", offsets=[1, 2, 3])
    assert [(each.stage, each.offset, each.windows) for each in told] == [
        (Stage.WRITTEN, 1, 1),
        (Stage.WRITTEN, 2, 2),
        (Stage.EXPIRED, 3, None),
    ]
    assert house.rooms.journal.last_connect_s("alice") == 0
    assert house.rooms.journal.last_connect_s("nobody") is None
