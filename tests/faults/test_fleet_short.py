"""
The fault suite on a fleet, in its short form: one cluster, Redis, HAProxy, three bridges.

`make faults-fleet` does all kinds of faults for half an hour; docs/faults.md has its tables.
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
USERS = 64
DRAIN_PER_S = 20


def most_in_a_second(times: Iterable[float]) -> int:
    """Return the largest number of `times` that lie within one second."""
    last: deque[float] = deque()
    most = 0
    for t in times:
        last.append(t)
        while last[0] <= t - 1:
            last.popleft()
        most = max(most, len(last))
    return most


def connects_while_rolling(result: SuiteResult) -> list[float]:
    """Return when windows connected while bridges were restarted one after the other."""
    events = result.events
    (began,) = (
        e.t for e in events if isinstance(e, FaultStarted) and e.kind == ROLLING
    )
    (ended,) = (e.t for e in events if isinstance(e, FaultEnded) and e.kind == ROLLING)
    return [e.t for e in events if isinstance(e, Connected) and began < e.t < ended]


@pytest.mark.timeout(WITHIN_S + 60)
async def test_a_fleet_loses_parts_and_no_message(tmp_path: Path) -> None:
    """
    Kill -9 of a bridge, of a RabbitMQ node and of Redis; then all bridges restart in turn.

    A hundred and fifty windows behind HAProxy, of users whose windows are at different
    bridges: every message in every window, in order.
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
    # Unpaced, the second and the third bridge alone would send 75 and more at once; paced,
    # a busy machine lets some wait for each other.
    assert most_in_a_second(connects_while_rolling(result)) < 2.5 * DRAIN_PER_S
