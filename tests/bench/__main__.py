"""
The bench: the bridge and what one would write instead, on the same work in one run.

    python -m tests.bench                          five rounds, about fifteen minutes
    python -m tests.bench --rounds 1 --only steady --servers memory,node
    python -m tests.bench --profile                where the bridge's time goes
    python -m tests.bench --leak                   whether it stays flat; ten minutes

Progress on stderr, tables on stdout. Ctrl-C ends all that was started.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from tests.bench import leak, profile
from tests.bench.plots import draw
from tests.bench.report import report_lines, write_part
from tests.bench.results import Results
from tests.bench.run import USUAL_WORKS, Plan, open_world, run
from tests.bench.servers import KINDS
from tests.bench.works import WORKS, Scale


def main() -> int:
    """Do what the arguments say; status 130 after Ctrl-C."""
    given = _parse()
    try:
        if given.leak:
            lines = asyncio.run(leak.run(given.servers, given.leak_scale, tell=_tell))
            part = "leak"
        elif given.profile:
            lines = asyncio.run(profile.run(given.servers, given.only, tell=_tell))
            part = "profile"
        else:
            lines = _compare(given)
            part = "run"
    except KeyboardInterrupt:
        _tell("stopped")
        return 130
    sys.stdout.write("\n".join(lines) + "\n")
    if given.report is not None:
        write_part(given.report, part, lines)
    return 0


def _compare(given: argparse.Namespace) -> Sequence[str]:
    scale = Scale()
    if given.seconds is not None:
        scale = replace(scale, seconds=given.seconds)
    plan = Plan(
        works=given.only or USUAL_WORKS,
        servers=given.servers or tuple(KINDS),
        rounds=given.rounds,
        scale=scale,
    )
    results = asyncio.run(_run(plan))
    if given.report is not None:
        facts = orjson.dumps(results.as_json(), option=orjson.OPT_INDENT_2)
        given.report.with_suffix(".json").write_bytes(facts + b"\n")
        draw(results, given.report.with_suffix(".png"))
    return tuple(report_lines(results))


async def _run(plan: Plan) -> Results:
    async with open_world(_tell) as world:
        return await run(plan, world, tell=_tell)


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _words(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return what reads words with commas between them, each of a closed list."""

    def words(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        for word in found:
            if word not in known:
                message = f"{word!r} is none of {', '.join(known)}"
                raise argparse.ArgumentTypeError(message)
        return found

    return words


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="how often everything is measured")
    add("--seconds", type=float, help="how long a steady stream goes on")
    add(
        "--only",
        type=_words(tuple(WORKS | profile.WORKS)),
        help="works, with commas between them",
    )
    add("--servers", type=_words(tuple(KINDS)), help="servers, likewise")
    add(
        "--report",
        type=Path,
        help="a page with marks to write the tables into; JSON and PNG go beside it",
    )
    add("--profile", action="store_true", help="where the bridge's time goes, instead")
    add("--leak", action="store_true", help="memory over a long time, instead")
    add(
        "--leak-scale",
        type=float,
        default=1.0,
        help="how much of the long time; below 1 inboxes are not full in time, and memory grows",
    )
    given = parser.parse_args()
    known = profile.WORKS if given.profile else WORKS
    unknown = [word for word in given.only or () if word not in known]
    if unknown:
        parser.error(f"--only: here there is no {', '.join(unknown)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
