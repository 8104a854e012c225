"""The fault suite in its short form: each kind of fault once, and three bridges that are wrong."""

from pathlib import Path

import pytest

from tests.conftest import SLOW_FACTOR
from tests.faults.suite.checker import Violation
from tests.faults.suite.single_faults import FAULTS
from tests.faults.suite_process import run_suite

SHORT_WITHIN_S = 200 * SLOW_FACTOR
WRONG_WITHIN_S = 120 * SLOW_FACTOR


@pytest.mark.timeout(SHORT_WITHIN_S + 20)
async def test_nothing_is_lost_whatever_goes_wrong(tmp_path: Path) -> None:
    """The promise, under every kind of fault that we know; `make faults` does it for long."""
    result = await run_suite(
        "--users", "10", "--rate", "80", folder=tmp_path, within_s=SHORT_WITHIN_S
    )

    assert result.code == 0, result.output
    assert result.happened == {fault.kind for fault in FAULTS}, result.output
    assert result.verdict.is_good


@pytest.mark.parametrize(
    ("mutant", "fault", "times", "violation"),
    [
        ("ack_before_append", "before append", 2, Violation.LOST),
        ("swap", "bridge: frozen", 1, Violation.ORDER),
        ("forget_ids", "after append", 4, Violation.REPEATED_ID),
    ],
)
async def test_a_bridge_that_is_wrong_is_found_out(
    tmp_path: Path, mutant: str, fault: str, times: int, violation: str
) -> None:
    """
    A suite that finds nothing in a wrong bridge would prove nothing about a right one.

    The fault comes several times, because one alone may hit a batch in which the wrong
    bridge does nothing wrong, e.g. one whose messages carry no id.
    """
    result = await run_suite(
        "--users", "6", "--rate", "120", "--mutant", mutant,
        "--only", fault, "--times", str(times), "--settle", "4",
        folder=tmp_path,
        within_s=WRONG_WITHIN_S,
    )  # fmt: skip

    assert result.code == 1, result.output
    assert result.verdict.violations[violation] > 0, result.output
