"""
The fault suite: `python -m tests.faults.suite --minutes 30 --seed 7`.

Exit status: 0 if the promise was kept, 1 if not; then the history stays for looking.
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

import uvloop

from bridge.logging import configure_logs
from tests.faults.suite.program import MUTANTS
from tests.faults.suite.report import report_lines, trouble_lines, write_report
from tests.faults.suite.run import Outcome, Plan, Run
from tests.faults.suite.scenes import SCENES
from tests.faults.suite.store_folder import leave_mount_namespace
from tests.faults.suite.world import Scale


def main() -> int:
    """Do what the arguments say."""
    arguments = _parse()
    scale = Scale(
        users=arguments.users,
        messages_per_s=arguments.rate,
        inbox=arguments.inbox,
        mutant=arguments.mutant,
        drain_s=arguments.drain,
        drain_per_s=arguments.drain_rate,
        ping_s=arguments.ping,
    )
    plan = Plan(
        scene=SCENES[arguments.scene],
        seed=arguments.seed,
        minutes=None if arguments.short else arguments.minutes,
        scale=scale,
        only=tuple(arguments.only),
        times=arguments.times,
        faults_least=arguments.at_least,
        rounds_max=arguments.rounds,
        settle_s=arguments.settle,
    )
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="bridge-faults-"))
    may_mount = not arguments.no_mount and leave_mount_namespace()
    configure_logs(level="error", log_format="json")
    # Cut connections are no news here.
    logging.getLogger("engineio.client").setLevel(logging.CRITICAL)
    _tell(f"seed {plan.seed}; {len(plan.faults)} kinds of faults; history in {folder}")
    run = Run(plan, folder=folder, may_mount=may_mount, tell=_tell)
    is_good = False
    try:
        outcome = uvloop.run(_until_told(run))
        is_good = outcome.is_good
        sys.stdout.write("\n".join(report_lines(outcome)) + "\n")
        for line in trouble_lines(outcome):
            _tell(line)
        if arguments.report is not None:
            write_report(outcome, arguments.report)
    except asyncio.CancelledError:
        _tell("it was told to end, and has cleaned up")
    finally:
        if is_good and not arguments.keep and arguments.folder is None:
            shutil.rmtree(folder)
        else:
            _tell(f"seed {plan.seed}: history and log are kept in {folder}")
    return 0 if is_good else 1


async def _until_told(run: Run) -> Outcome:
    """
    Do the run; SIGTERM ends it in order, with everything that it has started.

    By cancelling it: an exception that a signal raises wherever the program is just then
    may end in a task that nobody looks at, and the run goes on.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run.do()


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.suite", description=__doc__
    )
    add = parser.add_argument
    add("--scene", choices=sorted(SCENES), default="alone", help="what there is")
    add("--drain-rate", type=int, default=200, help="windows told to go in a second")
    add("--ping", type=int, default=3, help="pause between pings to a window, seconds")
    add("--drain", type=float, default=5.0, help="how long leaving may take, seconds")
    add("--minutes", type=float, default=30.0, help="how long faults go on")
    add("--short", action="store_true", help="each kind of fault once, instead")
    add(
        "--seed",
        type=int,
        default=secrets.randbelow(1 << 30),
        help="repeats a sequence",
    )
    add("--report", type=Path, help="a page with marks, to write the tables into")
    add("--users", type=int, default=40)
    add("--rate", type=float, default=125.0, help="messages a second, on average")
    add("--inbox", choices=["sqlite", "memory"], default="sqlite")
    add(
        "--only", action="append", default=[], help="part of a fault's name; repeatable"
    )
    add("--times", type=int, default=1, help="how often, with --short")
    add("--at-least", type=int, default=0, help="go on until so many faults happened")
    add("--rounds", type=int, help="at most so many rounds of faults")
    add(
        "--mutant",
        choices=sorted(MUTANTS),
        default="",
        help="a bridge wrong on purpose",
    )
    add(
        "--settle", type=float, default=90.0, help="how long the last may take, seconds"
    )
    add("--folder", type=Path, help="an empty one for the history, kept in any case")
    add("--no-mount", action="store_true", help="no disk of its own, even as root")
    add("--keep", action="store_true", help="keep the history of a good run, too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
