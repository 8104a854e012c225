"""History files."""

from pathlib import Path

from tests.faults.suite.history import Confirmed, Event, History, Invoked, read_history


def test_a_history_that_was_written_reads_the_same(tmp_path: Path) -> None:
    """The history of a failed run can be checked again later."""
    recorded: list[Event] = []
    path = tmp_path / "history.jsonl"
    history = History.at(path, recorded.append)
    events: list[Event] = [
        Invoked(history.t, "ann", "p", 1, has_id=True),
        Confirmed(history.t, "ann", "p", 1),
    ]
    for event in events:
        history.add(event)
    history.close()

    assert list(read_history(path)) == recorded == events
