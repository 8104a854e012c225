"""A history on disk."""

from pathlib import Path

from tests.faults.suite.history import Confirmed, Event, History, Invoked, read_history


def test_a_history_that_was_written_reads_the_same(tmp_path: Path) -> None:
    """What is kept of a bad run can be judged again, by another checker."""
    heard: list[Event] = []
    path = tmp_path / "history.jsonl"
    history = History.at(path, heard.append)
    events: list[Event] = [
        Invoked(history.t, "ann", "p", 1, has_id=True),
        Confirmed(history.t, "ann", "p", 1),
    ]
    for event in events:
        history.add(event)
    history.close()

    assert list(read_history(path)) == heard == events
