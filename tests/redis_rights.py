"""The rights of a Redis user in docs/operations.md, for tests that log in with them."""

from pathlib import Path
from typing import Final

_PAGE: Final = Path(__file__).parents[1] / "docs" / "operations.md"
_RIGHTS: Final = ("+", "-", "~", "&", "reset")


def documented_rights(prefix: str) -> list[str]:
    """Return the rights in the line with this prefix, without the password of the user."""
    for line in _PAGE.read_text().splitlines():
        if line.startswith(prefix):
            words = line.removeprefix(prefix).replace("`", " ").split()
            return [word for word in words if word.startswith(_RIGHTS)]
    message = f"no line of {_PAGE.name} begins with {prefix!r}"
    raise AssertionError(message)
