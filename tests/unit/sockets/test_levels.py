"""Levels: windows that have had the same are written to together, the others one by one."""

import pytest

from tests.unit.sockets.rooms_fakes import House, frames, line, pieces, stored


@pytest.fixture
def house() -> House:
    """Nobody is in."""
    return House()


@pytest.mark.parametrize("offsets", [(2, 0), (0, 2)])
def test_a_window_that_has_part_of_a_batch_gets_the_rest(
    house: House, offsets: tuple[int, int]
) -> None:
    """Its replay was ahead of the feed, its neighbour's was not, whoever came first."""
    ahead, level = sorted(
        (house.window("alice", offset=offset) for offset in offsets),
        key=lambda window: -window.offset,
    )

    house.rooms.feed([stored("alice", offset) for offset in (1, 2, 3, 4)])

    assert frames(ahead) == [b'42["message",3,"e-3"]', b'42["message",4,"e-4"]']
    assert len(frames(level)) == 4
    assert not house.behind
    house.rooms.feed([stored("alice", 5)])
    assert pieces(ahead)[-1] is pieces(level)[-1]


@pytest.mark.parametrize("offsets", [(0, 3), (3, 0)])
def test_a_window_that_is_ahead_waits_until_the_others_have_had_the_same(
    house: House, offsets: tuple[int, int]
) -> None:
    """Each gets every message once."""
    windows = [house.window("alice", offset=offset) for offset in offsets]

    for offset in (1, 2, 3, 4):
        house.rooms.feed([stored("alice", offset)])

    assert sorted(len(frames(window)) for window in windows) == [1, 4]
    assert [window.offset for window in windows] == [4, 4]


def test_a_page_may_answer_what_was_written_to_it_and_no_more(house: House) -> None:
    """Answers are counted for all windows of a room together."""
    first = house.window("alice")
    house.rooms.feed([stored("alice", 1)])
    second = house.window("alice", offset=1)
    house.rooms.feed([stored("alice", 2), stored("alice", 3)])

    assert (first.take_written(), second.take_written()) == (3, 2)
    assert (first.take_written(), second.take_written()) == (0, 0)
    house.rooms.feed([stored("alice", 4)])
    line(second).is_full = True
    house.rooms.feed([stored("alice", 5)])
    assert (line(second).answers, second.take_written()) == (1, 0)
    house.rooms.leave(first)
    assert (line(first).answers, first.offset) == (2, 5)


def test_a_window_that_went_over_to_a_websocket_is_written_to_with_the_others(
    house: House,
) -> None:
    """Until then its messages wait for its polls."""
    polling, other = house.window("alice", polls=True), house.window("alice")
    house.rooms.feed([stored("alice", 1)])
    assert pieces(polling)[0] is not None
    assert polling.level is None
    line(polling).is_written_at_once = True

    house.rooms.feed([stored("alice", 2)])
    house.rooms.feed([stored("alice", 3)])

    assert polling.level is other.level
    assert len(frames(polling)) == len(frames(other)) == 3
