"""A redrive that is killed loses no message, and duplicates are recognized."""

from tests.bench.dead_letters import measure
from tests.local_node import LocalNode


async def test_a_killed_redrive_loses_nothing_and_stores_nothing_twice(
    broker: LocalNode, namespace: str
) -> None:
    """Kill -9 during a redrive; docs/decisions has the result for 100,000 messages."""
    figures = await measure(broker, namespace, letters=1500, rate_per_s=1500)

    assert 0 < figures.killed_at < 1500
    assert figures.order_kept
    assert (figures.lost, figures.unmarked, figures.stored_twice) == (0, 0, 0)
