"""Sessions of the console end by themselves, at the latest."""

from bridge.http.console.sessions import Sessions
from tests.clock import Clock


def test_a_session_is_open_until_it_is_closed() -> None:
    """Closing twice is closing; an id that was made up opens nothing."""
    sessions = Sessions()
    session_id = sessions.open()

    assert sessions.use(session_id)
    assert sessions.use(session_id)
    sessions.close(session_id)
    sessions.close(session_id)

    assert not sessions.use(session_id)
    assert not sessions.use("made-up")


def test_ids_are_random_and_long() -> None:
    """Nobody guesses 256 bits."""
    sessions = Sessions()

    ids = {sessions.open() for _ in range(50)}

    assert len(ids) == 50
    assert min(map(len, ids)) >= 43


def test_a_session_that_is_not_used_ends() -> None:
    """A laptop that was left alone."""
    clock = Clock()
    sessions = Sessions(clock=clock, idle_s=60)
    used, left_alone = sessions.open(), sessions.open()

    clock.now_s += 59
    assert sessions.use(used)
    clock.now_s += 1

    assert sessions.use(used)
    assert not sessions.use(left_alone)


def test_no_session_outlives_its_life_however_much_it_is_used() -> None:
    """A page that polls is used all the time."""
    clock = Clock()
    sessions = Sessions(clock=clock, life_s=100, idle_s=60)
    session_id = sessions.open()

    for _ in range(2):
        clock.now_s += 49
        assert sessions.use(session_id)
    clock.now_s += 2

    assert not sessions.use(session_id)


def test_their_number_is_bounded_and_the_one_not_used_for_longest_makes_room() -> None:
    """Memory is not for who signs in again and again."""
    sessions = Sessions(at_most=2)
    first, second = sessions.open(), sessions.open()
    assert sessions.use(first)

    third = sessions.open()

    assert [sessions.use(one) for one in (first, second, third)] == [True, False, True]


def test_those_that_ended_make_room_first() -> None:
    """Nobody is thrown out for the sake of the dead."""
    clock = Clock()
    sessions = Sessions(clock=clock, idle_s=60, at_most=2)
    sessions.open()
    clock.now_s += 59
    used = sessions.open()
    clock.now_s += 1

    sessions.open()

    assert sessions.use(used)


def test_all_end_at_once_when_the_token_is_another() -> None:
    """Whoever had the old one had it long enough."""
    sessions = Sessions()
    ids = [sessions.open() for _ in range(3)]

    sessions.close_all()

    assert not any(map(sessions.use, ids))
