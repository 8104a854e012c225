"""The settings of the cyclic garbage collector."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.cli.run import tune_garbage_collector


@pytest.fixture
def visited() -> Iterator[list[int]]:
    """Return how many objects each collection of the younger generations visits."""
    threshold = gc.get_threshold()
    counts: list[int] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        young = range(info["generation"] + 1)
        if phase == "start" and len(young) < 3:
            counts.append(sum(len(gc.get_objects(each)) for each in young))

    gc.callbacks.append(note)
    yield counts
    gc.callbacks.remove(note)
    gc.set_threshold(*threshold)


def test_no_collection_visits_many_objects(visited: list[int]) -> None:
    """A collection of all messages that have been stored since the last one takes too long."""
    tune_garbage_collector()

    stored = [[None] for _ in range(300_000)]

    assert len(stored) == 300_000
    assert 0 < max(visited) < 50_000
