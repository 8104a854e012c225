"""Parsers that strangers reach: a short run of what `python -m tests.fuzz` runs for hours."""

import pytest

from tests.fuzz.harness import PARSERS, load, mutated


@pytest.mark.parametrize("name", PARSERS)
def test_mutated_inputs_cause_declared_errors_only(name: str) -> None:
    """The seeds contain an input for each fault that a long run has found."""
    parser = load(name)
    for data in mutated(parser.SEEDS, inputs=400):
        try:
            parser.fuzz_one(data)
        except BaseException as exc:
            exc.add_note(f"parser {name}, input {data!r}")
            raise
