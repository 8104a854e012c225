"""docs/scale.md agrees with the model."""

from tests.bench import scale
from tests.bench.scale_model import Rules


def test_the_tables_of_the_page_are_current() -> None:
    """New measurements require new tables."""
    page = scale.MEASURED.with_suffix(".md").read_text(encoding="utf-8")
    costs, rules = scale.load_costs(), Rules()

    for lines in (
        scale.cost_lines(costs),
        scale.table_lines(costs, rules),
        scale.limit_lines(costs, rules),
    ):
        assert "\n".join(lines) in page
