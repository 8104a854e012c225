"""
The fault suite as a child process, as `make faults` runs it.

The suite mounts file systems and handles signals, which must not affect the test process.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.suite.checker import Verdict, check
from tests.faults.suite.history import Event, FaultEnded, read_history

_ROOT: Final = Path(__file__).parents[2]
_SEED: Final = 1


@dataclass
class SuiteResult:
    """The result of a run of the suite."""

    code: int
    output: str
    history: Path

    @property
    def events(self) -> list[Event]:
        """The recorded events."""
        return list(read_history(self.history))

    @property
    def verdict(self) -> Verdict:
        """The verdict on its history, checked again."""
        return check(self.events)

    @property
    def happened(self) -> set[str]:
        """The kinds of faults that happened."""
        return {
            event.kind
            for event in self.events
            if isinstance(event, FaultEnded) and event.happened
        }


async def run_suite(*arguments: str, folder: Path, within_s: float) -> SuiteResult:
    """Run the short form of the suite."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.suite",
        "--seed",
        str(_SEED),
        "--folder",
        str(folder),
        "--short",
        *arguments,
        cwd=_ROOT,
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
    return SuiteResult(process.returncode, output, folder / "history.jsonl")
