"""README and the pages in docs/ agree with the code and with each other."""

import re
from pathlib import Path

import pytest

from bridge.settings.model import Settings
from bridge.settings.names import environment_name
from tools.readme import PAGES, ROOT, TABLES, render_tables

README = ROOT / "README.md"
USER_PAGES = [
    README,
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "compose").rglob("*.md")),
]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def test_the_tables_are_those_of_the_code() -> None:
    """A new setting, code or reason reaches the pages by `python tools/readme.py`."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]

    assert [render_tables(text) for text in texts] == texts
    assert all(f"<!-- table: {name} -->" in "".join(texts) for name in TABLES)


@pytest.mark.parametrize("page", USER_PAGES, ids=_name)
def test_every_variable_that_a_page_names_is_a_setting(page: Path) -> None:
    """A renamed setting must not live on in prose."""
    text = page.read_text(encoding="utf-8")
    known = {environment_name(name) for name in Settings.model_fields}
    named = set(re.findall(r"BRIDGE_[A-Z0-9_]+[A-Z0-9]", text)) - {
        "BRIDGE_CONFIG",
        "BRIDGE_TOKEN",
    }

    assert named <= known


@pytest.mark.parametrize("page", USER_PAGES, ids=_name)
def test_every_file_that_a_page_points_to_exists(page: Path) -> None:
    """Moved and deleted files are still named in prose."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:bridge|compose|schemas|tools|docs)/[\w./-]*[\w/])`", text)
    linked = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)

    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path in linked if not (page.parent / path).exists()] == []


def _anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub and the site make them."""
    text = re.sub(
        r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\s-]", "", one).strip().lower().replace(" ", "-")
        for one in headings
    }


@pytest.mark.parametrize("page", USER_PAGES, ids=_name)
def test_every_anchor_that_a_page_links_to_exists(page: Path) -> None:
    """A renamed heading breaks links without a notice."""
    linked = re.findall(
        r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text("utf-8")
    )

    missing = [
        f"{path}#{anchor}"
        for path, anchor in linked
        if anchor not in _anchors(page.parent / path if path else page)
    ]
    assert missing == []


@pytest.mark.parametrize("page", USER_PAGES, ids=_name)
def test_lines_are_short(page: Path) -> None:
    """Long lines cannot be reviewed. Tables, commands and addresses cannot be wrapped."""
    text = re.sub(
        r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    long = [
        line
        for line in text.splitlines()
        if len(line) > 100
        and not line.startswith("|")
        and "https://" not in line
        and not re.fullmatch(r" *`[^`]+`\.?", line)
    ]

    assert long == []


def test_every_page_is_in_the_navigation() -> None:
    """`make docs` refuses a page without an entry in mkdocs.yml."""
    entries = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]

    assert [page for page in pages if f": {page.as_posix()}\n" not in entries] == []


def test_the_readme_is_short() -> None:
    """A reader in a hurry gets one page that leads to the others."""
    assert len(README.read_bytes()) <= 10_240


def test_every_defense_has_a_test() -> None:
    """A defense whose test was renamed or deleted is only a claim."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    named = re.findall(r"\| T: (\S+)(?: (test_\w+))? \|", text)
    missing = [
        name
        for path, name in named
        if f"def {name or 'test_'}" not in (ROOT / "tests" / path).read_text("utf-8")
    ]

    assert missing == []
    assert len(named) == len(rows) - text.count("| threat |")


def test_every_test_that_a_page_names_exists() -> None:
    """A renamed test leaves a claim without evidence."""
    sources = "".join(
        path.read_text("utf-8")
        for path in (ROOT / "tests").rglob("test_*.py")
        if "node_modules" not in path.parts
    )
    pages = (ROOT / "docs" / "protocol-notes.md", ROOT / "docs" / "security.md")
    named = {
        name
        for page in pages
        for name in re.findall(r"\b(test_\w{3,})\b(?!\.py)", page.read_text("utf-8"))
    }

    assert sorted(name for name in named if f"def {name}(" not in sources) == []
