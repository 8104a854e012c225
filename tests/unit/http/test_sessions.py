"""Sessions of the console end at sign-out, or after a limited time."""

from bridge.http.console.sessions import Sessions
from tests.clock import Clock


def test_a_session_is_open_until_it_is_closed() -> None:
    """Closing it twice is allowed, and an unknown id is not a session."""
    sessions = Sessions()
    session_id = sessions.open()

    assert sessions.use(session_id)
    assert sessions.use(session_id)
    sessions.close(session_id)
    sessions.close(session_id)

    assert not sessions.use(session_id)
    assert not sessions.use("made-up")


def test_ids_are_random_and_long() -> None:
    """256 random bits cannot be guessed."""
    sessions = Sessions()

    ids = {sessions.open() for _ in range(50)}

    assert len(ids) == 50
    assert min(map(len, ids)) >= 43


def test_a_session_that_is_not_used_ends() -> None:
    """An operator may have left a laptop unattended."""
    clock = Clock()
    sessions = Sessions(clock=clock, idle_s=60)
    used, unused = sessions.open(), sessions.open()

    clock.now_s += 59
    assert sessions.use(used)
    clock.now_s += 1

    assert sessions.use(used)
    assert not sessions.use(unused)


def test_a_session_that_is_used_ends_at_the_end_of_its_life() -> None:
    """An open page polls and would keep its session open forever."""
    clock = Clock()
    sessions = Sessions(clock=clock, life_s=100, idle_s=60)
    session_id = sessions.open()

    for _ in range(2):
        clock.now_s += 49
        assert sessions.use(session_id)
    clock.now_s += 2

    assert not sessions.use(session_id)


def test_one_session_too_many_ends_the_one_whose_last_use_is_oldest() -> None:
    """Repeated sign-ins must not fill the memory."""
    sessions = Sessions(at_most=2)
    first, second = sessions.open(), sessions.open()
    assert sessions.use(first)

    third = sessions.open()

    assert [sessions.use(one) for one in (first, second, third)] == [True, False, True]


def test_ended_sessions_are_dropped_first() -> None:
    """An open session must not end in favor of one that has ended."""
    clock = Clock()
    sessions = Sessions(clock=clock, idle_s=60, at_most=2)
    sessions.open()
    clock.now_s += 59
    used = sessions.open()
    clock.now_s += 1

    sessions.open()

    assert sessions.use(used)


def test_all_sessions_can_be_closed_at_once() -> None:
    """This is needed when the token changes."""
    sessions = Sessions()
    ids = [sessions.open() for _ in range(3)]

    sessions.close_all()

    assert not any(map(sessions.use, ids))
