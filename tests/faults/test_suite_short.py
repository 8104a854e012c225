"""The short form of the fault suite: each kind of fault once, and the mutants."""

from pathlib import Path

import pytest

from tests.conftest import SLOW_FACTOR
from tests.faults.suite.checker import Violation
from tests.faults.suite.presence_checker import PresenceViolation
from tests.faults.suite.single_faults import FAULTS
from tests.faults.suite_process import SuiteResult, run_suite
from tests.local_node import LocalNode

SHORT_WITHIN_S = 200 * SLOW_FACTOR
MUTANT_WITHIN_S = 120 * SLOW_FACTOR


@pytest.mark.timeout(SHORT_WITHIN_S + 20)
async def test_no_message_is_lost_under_any_kind_of_fault(tmp_path: Path) -> None:
    """The delivery guarantee holds under each kind of fault; `make faults` runs longer."""
    result = await run_suite(
        "--users", "10", "--rate", "80", folder=tmp_path, within_s=SHORT_WITHIN_S
    )

    assert result.code == 0, result.output
    assert result.happened == {fault.kind for fault in FAULTS}, result.output
    assert result.verdict.is_good


@pytest.mark.parametrize(
    ("mutant", "fault", "times", "violation"),
    [
        ("ack_before_append", "before append", 6, Violation.LOST),
        ("swap", "bridge: frozen", 1, Violation.ORDER),
        ("forget_ids", "after append", 6, Violation.REPEATED_ID),
        ("trust_clock", "clock jumps", 6, Violation.GAP),
        ("block_on_logs", "log pipe", 1, Violation.HELD_UP),
        ("declare_public_exchange_first", "first start", 1, Violation.LOST),
        ("wait_for_dead_letters", "alarm with invalid", 1, Violation.HELD_UP),
        ("trust_writes", "then discarded", 6, Violation.LOST),
        ("trust_responses", "poll answers", 6, Violation.LOST),
        ("keep_older", "suspended", 6, Violation.LOST),
        ("count_holes", "suspended", 6, Violation.GAP),
        ("forget_retained", "pages reloaded", 6, Violation.RETAINED),
        ("forget_events", "RabbitMQ: cut", 6, Violation.UNREPORTED),
        ("publish_before_commit", "kill -9 at a random", 6, Violation.CHANGED),
        ("forget_late", "and bridge: frozen", 6, Violation.NOT_LATE),
    ],
)
async def test_the_checker_detects_a_bridge_with_a_defect(
    broker: LocalNode,
    tmp_path: Path,
    mutant: str,
    fault: str,
    times: int,
    violation: str,
) -> None:
    """
    A suite that misses defects would prove nothing about a correct bridge.

    The fault is repeated until the defect is found, because a single one may hit a batch that
    the defect does not affect, for example one whose messages have no id.
    """
    result = await run_mutant(
        broker, tmp_path, "--mutant", mutant, "--only", fault, "--times", str(times),
        "--until", violation,
    )  # fmt: skip

    assert result.code == 1, result.output
    assert result.verdict.violations[violation] > 0, result.output


async def test_the_checker_detects_defects_of_presence(
    broker: LocalNode, tmp_path: Path
) -> None:
    """Two in one run: one shows after the fault, the other when users leave at the end."""
    result = await run_mutant(
        broker, tmp_path, "--mutant", "forget_online", "--mutant", "skip_debounce",
        "--only", "kill -9 at a random",
    )  # fmt: skip

    assert result.code == 1, result.output
    violations = result.verdict.violations
    assert violations[PresenceViolation.TWICE] > 0, result.output
    assert violations[PresenceViolation.FALSE_OFFLINE] > 0, result.output


async def run_mutant(broker: LocalNode, tmp_path: Path, *options: str) -> SuiteResult:
    """Run the suite with few users on the node that all tests share."""
    node = tmp_path / "node.json"
    broker.lend(node)
    folder = tmp_path / "run"
    folder.mkdir()
    return await run_suite(
        "--users", "10", "--rate", "120", "--ping", "1", "--settle", "4",
        "--probes", "8", "--node", str(node), *options,
        folder=folder,
        within_s=MUTANT_WITHIN_S,
    )  # fmt: skip
