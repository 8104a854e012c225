"""
Generate tables in docs/ from the code, or check that they are current.

    python tools/readme.py            writes the tables
    python tools/readme.py --check    exits with 1 if they would change

A table is the text between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic_core import PydanticUndefined

from bridge.enums import (
    REASONS_OF_BRIDGE,
    REQUEST_ERRORS,
    Closing,
    EventError,
    Fate,
    Refusal,
    SyncReason,
)
from bridge.settings.load import reload_text
from bridge.settings.model import Settings
from bridge.settings.names import environment_name

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (ROOT / "docs" / "settings.md", ROOT / "docs" / "reference.md")
_TABLE: Final = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render_tables(text: str) -> str:
    """Return `text` with all tables generated."""
    return _TABLE.sub(
        lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}", text
    )


def settings_table() -> str:
    """Return all settings with their defaults, and whether SIGHUP applies a change."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if default is None or default is PydanticUndefined or default == ():
            shown = ""
        elif isinstance(default, bool):
            shown = f"`{str(default).lower()}`"
        else:
            shown = f"`{default}`"
        rows.append(
            (
                f"`{environment_name(name)}`",
                shown,
                reload_text(name),
                field.description or "",
            )
        )
    return _markdown(("setting", "default", "SIGHUP", "meaning"), rows)


def reasons_table() -> str:
    """Return the reasons of dead letters."""
    rows = [(f"`{one}`", one.explanation) for one in REASONS_OF_BRIDGE]
    return _markdown(("`x-bridge-reason`", "meaning"), rows)


def refusals_table() -> str:
    """Return the codes of `connect_error`."""
    rows = [
        (f"`{one}`", "yes" if one.is_temporary else "", one.explanation)
        for one in Refusal
    ]
    return _markdown(("`err.data.code`", "`temporary`", "meaning"), rows)


def closings_table() -> str:
    """Return the codes of `bridge:closing`."""
    rows = [
        (f"`{one}`", "yes" if one.reconnect else "", one.explanation) for one in Closing
    ]
    return _markdown(("`code`", "`reconnect`", "meaning"), rows)


def sync_table() -> str:
    """Return the reasons of `bridge:sync`."""
    return _markdown(
        ("`reason`", "meaning"), [(f"`{one}`", one.explanation) for one in SyncReason]
    )


def fates_table() -> str:
    """Return the possible fates of a message."""
    return _markdown(
        ("`fate`", "meaning"), [(f"`{one}`", one.explanation) for one in Fate]
    )


def events_table() -> str:
    """Return the error codes in replies to a page's events."""
    names = ", ".join(f"`{one}`" for one in _members(EventError))
    return textwrap.fill(names, 100)


def requests_table() -> str:
    """Return the codes of answers to requests from pages."""
    return _markdown(
        ("`code`", "meaning"), [(f"`{one}`", one.explanation) for one in REQUEST_ERRORS]
    )


def _members(kind: type[StrEnum]) -> Iterable[str]:
    return [member.value for member in kind]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


TABLES: Final = {
    "settings": settings_table,
    "reasons": reasons_table,
    "refusals": refusals_table,
    "closings": closings_table,
    "sync": sync_table,
    "fates": fates_table,
    "requests": requests_table,
    "events": events_table,
}


def main() -> int:
    """Write the pages, or compare them with --check."""
    changed = False
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        rendered = render_tables(text)
        changed |= rendered != text
        if "--check" not in sys.argv:
            page.write_text(rendered, encoding="utf-8")
    return int(changed and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
