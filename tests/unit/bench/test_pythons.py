"""The table that compares versions of Python."""

from tests.bench.pythons import table
from tests.bench.results import Results


def test_versions_are_compared_within_a_round() -> None:
    """Load that changes between rounds changes both versions, but not their ratio."""
    results = Results({}, {})
    for round_, (old_us, new_us) in enumerate(((10.0, 8.0), (20.0, 16.0), (10.0, 9.0))):
        for work in ("saturated", "steady", "fanout"):
            for store in ("memory", "sqlite"):
                results.note(round_, work, f"{store}-3.11", {"us": old_us})
                results.note(round_, work, f"{store}-3.13", {"us": new_us})

    lines = list(table(results, ["3.11", "3.13"]))

    old, new = "10.00 (10.00-20.00)", "9.00 (8.00-16.00); ratio 0.80 (0.80-0.90)"
    assert lines[2] == f"| 200 windows, saturated | `memory:` | {old} | {new} |"
    assert len(lines) == 2 + 3 * 2 + 2
