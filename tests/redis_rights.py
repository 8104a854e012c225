"""The rights of a Redis user as docs/operations.md has them, for tests that log in as one."""

from pathlib import Path
from typing import Final

_PAGE: Final = Path(__file__).parents[1] / "docs" / "operations.md"
_RIGHTS: Final = ("+", "-", "~", "&", "reset")


def documented_rights(beginning: str) -> list[str]:
    """Return the words of the line that begins so, without the password of the user."""
    for line in _PAGE.read_text().splitlines():
        if line.startswith(beginning):
            words = line.removeprefix(beginning).replace("`", " ").split()
            return [word for word in words if word.startswith(_RIGHTS)]
    message = f"nothing in {_PAGE.name} begins with {beginning!r}"
    raise AssertionError(message)
