"""Windows that have received the same messages form a group; others are written to singly."""

import pytest

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


@pytest.mark.parametrize("offsets", [(2, 0), (0, 2)])
def test_a_window_that_has_part_of_a_batch_gets_only_the_rest(
    fixture: RoomsFixture, offsets: tuple[int, int]
) -> None:
    """Its replay was ahead of the live feed, that of the other window was not."""
    ahead, grouped = sorted(
        (fixture.window("alice", offset=offset) for offset in offsets),
        key=lambda window: -window.offset,
    )

    fixture.rooms.emit([stored("alice", offset) for offset in (1, 2, 3, 4)])

    assert frames(ahead) == [b'42["message",3,"e-3"]', b'42["message",4,"e-4"]']
    assert len(frames(grouped)) == 4
    assert not fixture.behind
    fixture.rooms.emit([stored("alice", 5)])
    assert writes(ahead)[-1] is writes(grouped)[-1]


@pytest.mark.parametrize("offsets", [(0, 3), (3, 0)])
def test_a_window_that_is_ahead_joins_the_group_when_the_group_has_caught_up(
    fixture: RoomsFixture, offsets: tuple[int, int]
) -> None:
    """Each window gets every message once."""
    windows = [fixture.window("alice", offset=offset) for offset in offsets]

    for offset in (1, 2, 3, 4):
        fixture.rooms.emit([stored("alice", offset)])

    assert sorted(len(frames(window)) for window in windows) == [1, 4]
    assert [window.offset for window in windows] == [4, 4]


def test_a_window_expects_one_reply_for_each_message_written_to_it(
    fixture: RoomsFixture,
) -> None:
    """The messages are counted by the group, not by each window."""
    first = fixture.window("alice")
    fixture.rooms.emit([stored("alice", 1)])
    second = fixture.window("alice", offset=1)
    fixture.rooms.emit([stored("alice", 2), stored("alice", 3)])

    assert (first.take_expected_replies(), second.take_expected_replies()) == (3, 2)
    assert (first.take_expected_replies(), second.take_expected_replies()) == (0, 0)
    fixture.rooms.emit([stored("alice", 4)])
    session_of(second).is_full = True
    fixture.rooms.emit([stored("alice", 5)])
    assert (session_of(second).expected_replies, second.take_expected_replies()) == (
        1,
        0,
    )
    fixture.rooms.leave(first)
    assert (session_of(first).expected_replies, first.offset) == (2, 5)


def test_a_window_joins_the_group_after_its_upgrade_to_a_websocket(
    fixture: RoomsFixture,
) -> None:
    """Until then its messages wait for a poll."""
    polling, other = fixture.window("alice", polls=True), fixture.window("alice")
    fixture.rooms.emit([stored("alice", 1)])
    assert writes(polling)[0] is not None
    assert (polling.is_in_group, other.is_in_group) == (False, True)
    session_of(polling).is_polling = False

    fixture.rooms.emit([stored("alice", 2)])
    fixture.rooms.emit([stored("alice", 3)])

    assert (polling.is_in_group, other.is_in_group) == (True, True)
    assert len(frames(polling)) == len(frames(other)) == 3
