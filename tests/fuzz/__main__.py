"""
Fuzz the parsers that strangers reach, guided by coverage.

    python -m tests.fuzz --seconds 3600 [PARSER ...]

Needs atheris (`pip install atheris`). Prints a row for each parser. The inputs that reached
new code are kept in the folder of `--corpus`, so that the next run continues there; inputs
that failed are in its folder `findings`.
"""

import argparse
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.harness import PARSERS, load

_INPUTS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def main() -> int:
    """Fuzz each parser; return 1 if an input failed."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz")
    options.add_argument("--seconds", type=int, default=60, help="for each parser")
    options.add_argument("--corpus", type=Path, default=Path("/tmp/bridge-fuzz"))  # noqa: S108
    options.add_argument(
        "parsers", nargs="*", metavar="PARSER", help=", ".join(PARSERS)
    )
    chosen = options.parse_args()
    if find_spec("atheris") is None:
        sys.stderr.write("atheris is not installed: pip install atheris\n")
        return 2
    if unknown := set(chosen.parsers) - set(PARSERS):
        options.error(f"unknown: {', '.join(sorted(unknown))}")
    findings = 0
    for name in chosen.parsers or PARSERS:
        findings += _fuzz(name, chosen.corpus, seconds=chosen.seconds)
    return 1 if findings else 0


def _fuzz(name: str, corpus: Path, *, seconds: int) -> int:
    inputs, found = corpus / name, corpus / "findings" / name
    inputs.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(load(name).SEEDS):
        (inputs / f"seed-{number}").write_bytes(seed)
    log = corpus / f"{name}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.guided", "fuzz", name, str(inputs),
                f"-max_total_time={seconds}", f"-artifact_prefix={found}/",
                "-max_len=4096", "-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1",
            ],
            check=False, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode:
        sys.stdout.write(f"{name}: an input failed, see {log}\n")
        return 1
    reached, lines = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", "lines", name, str(inputs)],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    match = _INPUTS.search(log.read_text(errors="replace"))
    executed = int(match[1]) if match else 0
    sys.stdout.write(
        f"{name}: {seconds} s, {executed:,} inputs, {reached} of {lines} lines\n"
    )
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
