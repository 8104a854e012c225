"""
The fault suite in its short form: each kind of fault once, and three bridges that are wrong.

The suite runs as a process of its own, as `make faults` runs it: it kills, freezes and
mounts, and none of that is for the process that all other tests run in.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SLOW_FACTOR
from tests.faults.suite.alone_faults import FAULTS
from tests.faults.suite.checker import Verdict, Violation, check
from tests.faults.suite.history import FaultEnded, read_history

ROOT = Path(__file__).parents[2]
SEED = 1
SHORT_WITHIN_S = 200 * SLOW_FACTOR
WRONG_WITHIN_S = 120 * SLOW_FACTOR


@dataclass
class Result:
    """What a run of the suite left."""

    code: int
    output: str
    history: Path

    @property
    def verdict(self) -> Verdict:
        """Judge its history again."""
        return check(read_history(self.history))


async def suite(*arguments: str, folder: Path, within_s: float) -> Result:
    """Run the suite to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.suite",
        "--seed",
        str(SEED),
        "--folder",
        str(folder),
        "--short",
        *arguments,
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode is not None
    output = out.decode() + err.decode()
    return Result(process.returncode, output, folder / "history.jsonl")


@pytest.mark.timeout(SHORT_WITHIN_S + 20)
async def test_nothing_is_lost_whatever_goes_wrong(tmp_path: Path) -> None:
    """The promise, under every kind of fault that we know; `make faults` does it for long."""
    result = await suite(
        "--users", "10", "--rate", "80", folder=tmp_path, within_s=SHORT_WITHIN_S
    )

    assert result.code == 0, result.output
    happened = {
        event.kind
        for event in read_history(result.history)
        if isinstance(event, FaultEnded) and event.happened
    }
    assert happened == {fault.kind for fault in FAULTS}, result.output
    assert result.verdict.is_good


@pytest.mark.parametrize(
    ("mutant", "fault", "times", "violation"),
    [
        ("ack_before_append", "before append", 2, Violation.LOST),
        ("swap", "bridge: frozen", 1, Violation.ORDER),
        ("forget_ids", "after append", 4, Violation.REPEAT_ID),
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
    result = await suite(
        "--users", "6", "--rate", "120", "--mutant", mutant,
        "--only", fault, "--times", str(times), "--settle", "4",
        folder=tmp_path,
        within_s=WRONG_WITHIN_S,
    )  # fmt: skip

    assert result.code == 1, result.output
    assert result.verdict.violations[violation] > 0, result.output
