"""
Runs in a process of its own, because libFuzzer ends it.

    guided.py fuzz NAME ARGUMENTS...   fuzz a parser with these arguments of libFuzzer
    guided.py lines NAME FOLDER        count the lines that the inputs in a folder reach
"""

import sys
from pathlib import Path

from tests.fuzz.harness import load


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz, guided by the branches that an input reaches in bridge; never returns."""
    import atheris  # noqa: PLC0415 - only this mode needs it

    with atheris.instrument_imports(include=["bridge"]):
        parser = load(name)
    atheris.Setup([sys.argv[0], *arguments], parser.fuzz_one)
    atheris.Fuzz()


def print_lines(name: str, folder: Path) -> None:
    """Print how many lines of the parser's modules were reached, and how many there are."""
    from coverage import Coverage  # noqa: PLC0415 - tracing would disturb the other mode

    coverage = Coverage(data_file=None, source=["bridge"])
    coverage.start()
    parser = load(name)
    for path in folder.iterdir():
        parser.fuzz_one(path.read_bytes())
    coverage.stop()
    lines = reached = 0
    for module in parser.MODULES:
        _, statements, _, missing, _ = coverage.analysis2(sys.modules[module])
        lines += len(statements)
        reached += len(statements) - len(missing)
    sys.stdout.write(f"{reached} {lines}\n")


if __name__ == "__main__":
    mode, parser_name, *rest = sys.argv[1:]
    if mode == "fuzz":
        fuzz(parser_name, rest)
    else:
        print_lines(parser_name, Path(rest[0]))
