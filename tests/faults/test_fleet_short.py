"""
The short form of the fault suite on a fleet: a cluster, Redis, HAProxy and three bridges.

`make faults-fleet` runs all kinds of faults for 30 minutes; docs/faults.md has the results.
"""

from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import SLOW_FACTOR
from tests.faults.suite.history import Connected, FaultEnded, FaultStarted
from tests.faults.suite_process import SuiteResult, run_suite

WITHIN_S = 240 * SLOW_FACTOR
ROLLING = "bridges: restarted one after the other"
KINDS = {
    "bridge: kill -9 at a random moment",
    "RabbitMQ: killed and started",
    "Redis: killed and started",
    ROLLING,
}
USERS = 76
DRAIN_PER_S = 16


def most_in_a_second(times: Iterable[float]) -> int:
    """Return the largest number of `times` within one second."""
    last: deque[float] = deque()
    most = 0
    for t in times:
        last.append(t)
        while last[0] <= t - 1:
            last.popleft()
        most = max(most, len(last))
    return most


def connects_while_rolling(result: SuiteResult) -> list[float]:
    """Return the times of connections during the rolling restart."""
    events = result.events
    (began,) = (
        e.t for e in events if isinstance(e, FaultStarted) and e.kind == ROLLING
    )
    (ended,) = (e.t for e in events if isinstance(e, FaultEnded) and e.kind == ROLLING)
    return [e.t for e in events if isinstance(e, Connected) and began < e.t < ended]


@pytest.mark.timeout(WITHIN_S + 60)
async def test_a_fleet_loses_no_message_when_parts_of_it_die(tmp_path: Path) -> None:
    """
    Kill a bridge, a RabbitMQ node and Redis; restart all bridges one after the other.

    150 windows are behind HAProxy, and the windows of a user are on different bridges. Every
    message must reach every window, in order.
    """
    only = [word for kind in sorted(KINDS) for word in ("--only", kind)]
    result = await run_suite(
        "--scenario", "fleet", "--users", str(USERS), "--rate", "40",
        "--drain", "16", "--drain-rate", str(DRAIN_PER_S), *only,
        folder=tmp_path,
        within_s=WITHIN_S,
    )  # fmt: skip

    assert result.code == 0, result.output
    assert result.happened == KINDS, result.output
    verdict = result.verdict
    assert verdict.is_good
    assert verdict.counts["windows"] >= 140
    assert verdict.counts["bridges with windows"] == 3
    # Without pacing, the second and the third bridge would each disconnect 75 or more at
    # once. With pacing, connections that a busy machine holds up can still come together.
    assert most_in_a_second(connects_while_rolling(result)) < 4.5 * DRAIN_PER_S
