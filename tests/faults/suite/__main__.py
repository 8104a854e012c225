"""
The fault suite: `python -m tests.faults.suite --minutes 30 --seed 7`.

Exit status: 0 if there was no violation, 1 otherwise, 2 if something hung and the watchdog
ended the suite. The history is kept unless the status is 0.
"""

import argparse
import asyncio
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from bridge.logging import configure_logs
from tests.faults.suite.checker import Violation
from tests.faults.suite.program import MUTANTS
from tests.faults.suite.report import report_lines, trouble_lines, write_report
from tests.faults.suite.run import Outcome, Run, RunPlan
from tests.faults.suite.scenarios import SCENARIOS
from tests.faults.suite.store_folder import unshare_mounts
from tests.faults.suite.watchdog import Watchdog
from tests.faults.suite.world import Scale

_TERMINATE_TIMEOUT_S: Final = 30.0


def main() -> int:
    """Run the suite as the arguments say; return the exit status."""
    arguments = _parse()
    scale = Scale(
        users=arguments.users,
        messages_per_s=arguments.rate,
        inbox=arguments.inbox,
        mutants=tuple(arguments.mutant),
        drain_s=arguments.drain,
        drain_per_s=arguments.drain_rate,
        ping_s=arguments.ping,
        probes_s=arguments.probes,
        node=arguments.node,
    )
    plan = RunPlan(
        scenario=SCENARIOS[arguments.scenario],
        seed=arguments.seed,
        minutes=None if arguments.short else arguments.minutes,
        scale=scale,
        only=tuple(arguments.only),
        times=arguments.times,
        faults_least=arguments.at_least,
        rounds_max=arguments.rounds,
        until=arguments.until,
        settle_s=arguments.settle,
    )
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="bridge-faults-"))
    may_mount = not arguments.no_mount and unshare_mounts()
    configure_logs(level="error", log_format="json")
    # It would log every connection that a fault cuts.
    logging.getLogger("engineio.client").setLevel(logging.CRITICAL)
    _report(
        f"seed {plan.seed}; {len(plan.faults)} kinds of faults; history in {folder}"
    )
    watchdog = Watchdog(_report)
    run = Run(
        plan, folder=folder, may_mount=may_mount, report=_report, watchdog=watchdog
    )
    is_good = False
    try:
        outcome = uvloop.run(_run_until_terminated(run, watchdog))
        is_good = outcome.is_good
        sys.stdout.write("\n".join(report_lines(outcome)) + "\n")
        for line in trouble_lines(outcome):
            _report(line)
        if arguments.report is not None:
            write_report(outcome, arguments.report)
    except asyncio.CancelledError:
        _report("terminated by a signal, and cleaned up")
    finally:
        watchdog.stop()
        if is_good and not arguments.keep and arguments.folder is None:
            shutil.rmtree(folder)
        else:
            _report(f"seed {plan.seed}: history and log are kept in {folder}")
    return 0 if is_good else 1


async def _run_until_terminated(run: Run, watchdog: Watchdog) -> Outcome:
    """
    Run the suite; SIGTERM cancels it, which also ends all its processes.

    An exception raised by a signal handler would hit any task, which may ignore it. A
    cancellation may get lost as well (python/cpython#86296), so the second SIGTERM, or the
    time limit after the first, ends everything at once.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals: list[int] = []

    def terminate() -> None:
        if signals:
            watchdog.end_now("terminated by a second signal")
        signals.append(signal.SIGTERM)
        watchdog.phase("the end after SIGTERM", within_s=_TERMINATE_TIMEOUT_S)
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    watchdog.start(loop)
    try:
        return await run.run()
    except asyncio.CancelledError as exc:
        if signals:
            raise
        message = "a task of the suite was canceled without a signal"
        raise RuntimeError(message) from exc


def _report(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.suite", description=__doc__
    )
    add = parser.add_argument
    add(
        "--scenario",
        choices=sorted(SCENARIOS),
        default="single",
        help="the world to run in",
    )
    add(
        "--drain-rate",
        type=int,
        default=200,
        help="windows closed per second of a drain",
    )
    add("--ping", type=int, default=3, help="seconds between pings to a window")
    add(
        "--probes",
        type=float,
        default=20.0,
        help="seconds that a message may be held up by a fault that must not",
    )
    add("--drain", type=float, default=5.0, help="drain timeout in seconds")
    add("--minutes", type=float, default=30.0, help="duration of the faults")
    add("--short", action="store_true", help="instead, run each kind of fault once")
    add(
        "--seed",
        type=int,
        default=secrets.randbelow(1 << 30),
        help="repeats the same sequence of faults",
    )
    add("--report", type=Path, help="a page with markers, to write the report into")
    add("--users", type=int, default=40)
    add("--rate", type=float, default=125.0, help="average messages per second")
    add("--inbox", choices=["sqlite", "memory"], default="sqlite")
    add(
        "--only", action="append", default=[], help="part of a fault's kind; repeatable"
    )
    add("--times", type=int, default=1, help="cycles of faults, with --short")
    add(
        "--at-least",
        type=int,
        default=0,
        help="continue until this many faults happened",
    )
    add("--rounds", type=int, help="the most rounds of faults")
    add(
        "--until",
        choices=Violation.ALL,
        help="end after the round in which this violation was found",
    )
    add(
        "--node",
        type=Path,
        help="a file about a RabbitMQ node that runs already; no fault may stop it",
    )
    add(
        "--mutant",
        action="append",
        default=[],
        choices=sorted(MUTANTS),
        help="a bridge with a deliberate defect; repeatable",
    )
    add("--settle", type=float, default=90.0, help="time limit for the last messages")
    add("--folder", type=Path, help="an empty folder for the history; it is kept")
    add(
        "--no-mount",
        action="store_true",
        help="do not mount a disk for the store, even as root",
    )
    add("--keep", action="store_true", help="keep the history even without violations")
    arguments = parser.parse_args()
    if arguments.report is not None and not arguments.report.is_file():
        parser.error(f"--report: {arguments.report} does not exist")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
