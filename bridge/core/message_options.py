"""
What a producer asks for a message by headers that begin with `x-bridge-`.

A value that is not valid makes the message a dead letter: a producer that asks for something
must not get something else.
"""

from dataclasses import dataclass
from typing import Final

from bridge.core.properties import iter_table, render_table
from bridge.enums import OptionHeader

# Few messages have a header with this text, so the others are not searched further.
OPTIONS_MARK: Final = b"x-bridge-"

OPTION_NAMES: Final = frozenset(header.encode() for header in OptionHeader)
_TRUTHS: Final = {b"true": True, b"false": False}


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """
    How a message is delivered.

    Attributes:
        is_ephemeral: It is emitted to the windows that are open now, and never stored.

    """

    is_ephemeral: bool = False


def parse_options(headers: bytes) -> MessageOptions | str | None:
    """
    Read the options from the content of a header table.

    Returns:
        ``None`` if there are none; for an invalid value a sentence that names the header.

    """
    found = {
        name: value for name, value, _ in iter_table(headers) if name in OPTION_NAMES
    }
    if not found:
        return None
    flags: dict[bytes, bool] = {}
    for name, value in found.items():
        flag = _flag(value)
        if flag is None:
            return f"{name.decode()} is not true or false"
        flags[name] = flag
    options = MessageOptions(is_ephemeral=flags.get(b"x-bridge-ephemeral", False))
    return None if options == _NO_OPTIONS else options


def render_options(options: MessageOptions) -> bytes | None:
    """Return the content of a header table; ``None`` if no header is needed."""
    headers: dict[str, str | int | bytes] = {}
    if options.is_ephemeral:
        headers[OptionHeader.EPHEMERAL] = "true"
    return render_table(headers) or None


_NO_OPTIONS: Final = MessageOptions()


def _flag(value: bytes) -> bool | None:
    """Return an AMQP boolean, or a string that reads as one; ``None`` for all else."""
    if value[:1] == b"t":
        return value[1:] != b"\0"
    return _TRUTHS.get(value[5:]) if value[:1] in (b"S", b"x") else None
