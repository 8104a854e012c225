"""Session ids contain the number of their worker."""

import secrets

import pytest

from bridge.core.worker_slot import WorkerSlot

FIRST = WorkerSlot("/run/b", 0)
OTHER = WorkerSlot("/run/b", 12)


def test_a_worker_reads_the_owner_of_a_session_from_its_id() -> None:
    """No shared table of sessions is needed, which could be outdated."""
    session_id = OTHER.number_session(secrets.token_urlsafe(15))

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
def test_an_id_that_no_worker_created_has_no_owner(session_id: str) -> None:
    """A forged id never becomes a path, nor a request to another worker."""
    assert FIRST.owner_of(session_id) is None


def test_the_sockets_of_all_workers_are_in_one_folder() -> None:
    """Each worker can derive the paths of the others."""
    assert FIRST.sibling(12) == OTHER
    assert OTHER.handover_socket == "/run/b/handover-12"
    assert OTHER.operator_socket == "/run/b/operator-12"
