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
_EPHEMERAL: Final = OptionHeader.EPHEMERAL.encode()
_KEY: Final = OptionHeader.KEY.encode()
_TRUTHS: Final = {b"true": True, b"false": False}
_TEXTS: Final = (b"S", b"x")

KEY_MAX_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """
    How a message is delivered.

    Attributes:
        is_ephemeral: It is emitted to the windows that are open now, and never stored.
        key: It replaces the stored message of the same user, event and key. Every message
            that is stored and has options has a key.

    """

    is_ephemeral: bool = False
    key: str | None = None


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
    ephemeral, key = found.get(_EPHEMERAL), found.get(_KEY)
    is_ephemeral = ephemeral is not None and _flag(ephemeral)
    if is_ephemeral is None:
        return "x-bridge-ephemeral is not true or false"
    if key is None:
        return MessageOptions(is_ephemeral=True) if is_ephemeral else None
    try:
        text = key[5:].decode() if key[:1] in _TEXTS else ""
    except UnicodeDecodeError as exc:
        return f"x-bridge-key is not UTF-8 at byte {exc.start}"
    problem = key_problem(text)
    return f"x-bridge-key {problem}" if problem else MessageOptions(is_ephemeral, text)


def key_problem(key: str) -> str | None:
    """Return why `key` is invalid, as the end of a sentence; ``None`` if it is valid."""
    if not key:
        return "is not a string of 1 to 128 bytes"
    if any(one < " " or "\x7f" <= one <= "\x9f" for one in key):
        return "contains a control character"
    try:
        length = len(key.encode())
    except UnicodeEncodeError:  # a lone surrogate, from HTTP
        return "is not valid Unicode"
    if length > KEY_MAX_BYTES:
        return f"has {length} bytes, allowed are {KEY_MAX_BYTES}"
    return None


def render_options(options: MessageOptions) -> bytes | None:
    """Return the content of a header table; ``None`` if no header is needed."""
    headers: dict[str, str | int | bytes] = {}
    if options.is_ephemeral:
        headers[OptionHeader.EPHEMERAL] = "true"
    if options.key is not None:
        headers[OptionHeader.KEY] = options.key
    return render_table(headers) or None


def _flag(value: bytes) -> bool | None:
    """Return an AMQP boolean, or a string that reads as one; ``None`` for all else."""
    if value[:1] == b"t":
        return value[1:] != b"\0"
    return _TRUTHS.get(value[5:]) if value[:1] in _TEXTS else None
