"""Session ids tell whose they are."""

import secrets

import pytest

from bridge.core.worker_slot import Workplace

FIRST = Workplace("/run/b", 0)
OTHER = Workplace("/run/b", 12)


def test_every_worker_tells_whose_a_session_is_from_its_id_alone() -> None:
    """There is no table of sessions that could be behind."""
    session_id = OTHER.mark(secrets.token_urlsafe(15))

    assert FIRST.owner_of(session_id) == 12
    assert FIRST.owner_of(f"bridge-1.{session_id}") == 12
    assert OTHER.owner_of(session_id) is None


@pytest.mark.parametrize(
    "session_id",
    [
        "",
        "x" * 20,
        "x" * 20 + ".",
        "x" * 20 + ".1 ",
        "x" * 20 + ".999",
        "x" * 20 + ".1234",
        "x" * 19 + ".1",
        "../../" + "x" * 14 + ".1",
        "x" * 20 + ".\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_what_no_worker_has_given_away_is_nobodys(session_id: str) -> None:
    """A stranger's id never makes a path, nor a question to another worker."""
    assert FIRST.owner_of(session_id) is None


def test_neighbours_meet_in_one_folder() -> None:
    """Each knows the sockets of all, without being told."""
    assert FIRST.neighbour(12) == OTHER
    assert OTHER.handover_socket == "/run/b/handover-12"
    assert OTHER.operator_socket == "/run/b/operator-12"
