"""README says what the code does."""

import re
from pathlib import Path

from bridge.settings.model import Settings
from bridge.settings.names import environment_name
from tools.readme import README, TABLES, render_readme


def test_the_tables_are_those_of_the_code() -> None:
    """A new setting, code or reason reaches the README by `python tools/readme.py`."""
    text = README.read_text(encoding="utf-8")

    assert render_readme(text) == text
    assert all(f"<!-- table: {name} -->" in text for name in TABLES)


def test_every_variable_that_the_readme_names_is_a_setting() -> None:
    """A renamed setting must not live on in prose."""
    text = README.read_text(encoding="utf-8")
    known = {environment_name(name) for name in Settings.model_fields}
    named = set(re.findall(r"BRIDGE_[A-Z_]+[A-Z]", text)) - {"BRIDGE_CONFIG"}

    assert named <= known


def test_every_file_that_the_readme_points_to_is_there() -> None:
    """Paths in prose rot first."""
    text = README.read_text(encoding="utf-8")
    root = Path(README).parent
    pointed = re.findall(r"`((?:bridge|compose|schemas|tools|docs)/[\w./]*)`", text)
    pointed += re.findall(r"\]\(((?:docs|schemas|compose)/[\w./]+)\)", text)

    assert pointed
    assert [path for path in pointed if not (root / path).exists()] == []
