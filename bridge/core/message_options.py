"""
What a producer asks for a message by headers that begin with `x-bridge-`.

A value that is not valid makes the message a dead letter: a producer that asks for something
must not get something else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from bridge.core.durations import parse_duration_s, render_duration
from bridge.core.properties import iter_table, render_table
from bridge.enums import OptionHeader

# Few messages have a header with this text, so the others are not searched further.
OPTIONS_MARK: Final = b"x-bridge-"

OPTION_NAMES: Final = frozenset(header.encode() for header in OptionHeader)
_EPHEMERAL: Final = OptionHeader.EPHEMERAL.encode()
_KEY: Final = OptionHeader.KEY.encode()
_THROTTLE: Final = OptionHeader.THROTTLE.encode()
_RETAIN: Final = OptionHeader.RETAIN.encode()
_CLEAR: Final = OptionHeader.CLEAR.encode()
_RECEIPT: Final = OptionHeader.RECEIPT.encode()
_UNDELIVERED_AFTER: Final = OptionHeader.UNDELIVERED_AFTER.encode()
_TRUTHS: Final = {b"true": True, b"false": False}
_TEXTS: Final = (b"S", b"x")

KEY_MAX_BYTES: Final = 128
_THROTTLE_MIN_S: Final = 0.001
_THROTTLE_MAX_S: Final = 3600.0


@dataclass(slots=True)
class Tracking:
    """
    What a producer asks bridge to report about one message (core/receipts.py).

    Like `Receipt` and `WorkerEvent` not frozen, because thousands are created per second.

    Attributes:
        wants_receipt: The final outcome is published.
        reply_to: It is also published there, by the default exchange.
        correlation_id: Of what is published.
        undelivered_after_s: After this time the message counts as undelivered.

    """

    wants_receipt: bool
    reply_to: str | None = None
    correlation_id: str | None = None
    undelivered_after_s: float | None = None


@dataclass(slots=True)
class MessageOptions:
    """
    How a message is delivered.

    Instances are shared by a cache and must not be modified, nor their `tracking`. Like
    `Tracking` they are not frozen, because thousands are created per second.

    Attributes:
        is_ephemeral: It is emitted to the windows that are open now, and never stored.
        key: It replaces the stored message of the same user, event and key.
        throttle_s: A window that is open receives at most one message of the key in this
            time, and always the last one; ``None`` for no limit.
        is_retained: From now on new windows receive the newest message of the key first.
        is_cleared: From now on they do not.
        tracking: What bridge reports about it to workers; ``None`` for nothing.

    """

    is_ephemeral: bool = False
    key: str | None = None
    throttle_s: float | None = None
    is_retained: bool = False
    is_cleared: bool = False
    tracking: Tracking | None = None


_NO_OPTIONS: Final = MessageOptions()


def parse_options(
    headers: bytes, *, max_age_s: float = inf, undelivered_after_s: float | None = None
) -> MessageOptions | str | None:
    """
    Read the options from the content of a header table.

    Args:
        headers: The content of the table.
        max_age_s: How long an inbox keeps a message.
        undelivered_after_s: When a stored message without the header counts as undelivered.

    Returns:
        ``None`` if there are none; for an invalid value a sentence that names the header.

    """
    found = {
        name: value for name, value, _ in iter_table(headers) if name in OPTION_NAMES
    }
    if not found and undelivered_after_s is None:
        return None
    flags: dict[bytes, bool] = {}
    for name in (_EPHEMERAL, _RETAIN, _CLEAR):
        flag = _flag(found[name]) if name in found else False
        if flag is None:
            return f"{name.decode()} is not true or false"
        flags[name] = flag
    try:
        key = _parse_key(found[_KEY]) if _KEY in found else None
    except ValueError as exc:
        return f"{OptionHeader.KEY} {exc}"
    throttle_s = _parse_throttle_s(found[_THROTTLE]) if _THROTTLE in found else None
    if isinstance(throttle_s, str):
        return throttle_s
    tracking = _parse_tracking(found, max_age_s)
    if isinstance(tracking, str):
        return tracking
    options = MessageOptions(
        *(flags[_EPHEMERAL], key, throttle_s, flags[_RETAIN], flags[_CLEAR], tracking)
    )
    problem = options_problem(options)
    if problem is None and undelivered_after_s is not None and not options.is_ephemeral:
        tracking = options.tracking = tracking or Tracking(wants_receipt=False)
        if tracking.undelivered_after_s is None:
            tracking.undelivered_after_s = undelivered_after_s
    return problem or (None if options == _NO_OPTIONS else options)


def options_problem(options: MessageOptions) -> str | None:
    """Return why options exclude each other, as a sentence; ``None`` if they do not."""
    if options.is_retained and options.is_cleared:
        return f"{OptionHeader.RETAIN} and {OptionHeader.CLEAR} exclude each other"
    for name, is_set in (
        (OptionHeader.THROTTLE, options.throttle_s is not None),
        (OptionHeader.RETAIN, options.is_retained),
        (OptionHeader.CLEAR, options.is_cleared),
    ):
        if is_set and options.key is None:
            return f"{name} needs {OptionHeader.KEY}"
        if is_set and options.is_ephemeral:
            return f"{name} and {OptionHeader.EPHEMERAL} exclude each other"
    if options.is_ephemeral and options.tracking is not None:
        return (
            f"{OptionHeader.EPHEMERAL} excludes {OptionHeader.RECEIPT} and "
            f"{OptionHeader.UNDELIVERED_AFTER}"
        )
    return None


def _parse_throttle_s(value: bytes) -> float | str:
    """Return the interval, or a sentence that says what is wrong."""
    text = value[5:].decode(errors="replace") if value[:1] in _TEXTS else ""
    problem = throttle_problem(text)
    return f"{OptionHeader.THROTTLE} {problem}" if problem else parse_duration_s(text)


def throttle_problem(text: str) -> str | None:
    """Return why `text` is no interval, as the end of a sentence; ``None`` if it is one."""
    try:
        is_valid = _THROTTLE_MIN_S <= parse_duration_s(text) <= _THROTTLE_MAX_S
    except ValueError:
        is_valid = False
    return None if is_valid else "is not a duration from 1ms to 1h, such as 250ms"


def _parse_key(value: bytes) -> str:
    """Return the key; raises ValueError with the end of a sentence if it is invalid."""
    try:
        key = value[5:].decode() if value[:1] in _TEXTS else ""
    except UnicodeDecodeError as exc:
        message = f"is not UTF-8 at byte {exc.start}"
        raise ValueError(message) from exc
    problem = key_problem(key)
    if problem:
        raise ValueError(problem)
    return key


def asks_for_receipt(headers: bytes | None) -> bool:
    """Return whether a header table, valid or not, has the valid header for a receipt."""
    return any(
        name == _RECEIPT and bool(_flag(value))
        for name, value, _ in iter_table(headers or b"")
    )


def _parse_tracking(
    found: Mapping[bytes, bytes], max_age_s: float
) -> Tracking | str | None:
    """Return what the producer asks bridge to report; a sentence if a value is invalid."""
    receipt, after = found.get(_RECEIPT), found.get(_UNDELIVERED_AFTER)
    wants_receipt = receipt is not None and _flag(receipt)
    if wants_receipt is None:
        return f"{OptionHeader.RECEIPT} is not true or false"
    after_s = None
    if after is not None:
        text = after[5:].decode(errors="replace") if after[:1] in _TEXTS else ""
        problem = undelivered_after_problem(text, max_age_s=max_age_s)
        if problem:
            return f"{OptionHeader.UNDELIVERED_AFTER} {problem}"
        after_s = parse_duration_s(text)
    if not wants_receipt and after_s is None:
        return None
    return Tracking(wants_receipt, undelivered_after_s=after_s)


def undelivered_after_problem(text: str, *, max_age_s: float = inf) -> str | None:
    """
    Return why a message cannot count as undelivered after `text`; ``None`` if it can.

    Args:
        text: A duration.
        max_age_s: How long an inbox keeps a message.

    Returns:
        The end of a sentence.

    """
    try:
        after_s = parse_duration_s(text)
    except ValueError:
        after_s = 0.0
    if not after_s:
        return "is not a duration such as 45s"
    if after_s > max_age_s:
        kept = render_duration(max_age_s)
        return f"is longer than an inbox keeps a message, {kept} (BRIDGE_INBOX_MAX_AGE)"
    return None


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
    if options.throttle_s is not None:
        headers[OptionHeader.THROTTLE] = render_duration(options.throttle_s)
    if options.is_retained:
        headers[OptionHeader.RETAIN] = "true"
    if options.is_cleared:
        headers[OptionHeader.CLEAR] = "true"
    tracking = options.tracking
    if tracking is not None and tracking.wants_receipt:
        headers[OptionHeader.RECEIPT] = "true"
    if tracking is not None and tracking.undelivered_after_s is not None:
        after = render_duration(tracking.undelivered_after_s)
        headers[OptionHeader.UNDELIVERED_AFTER] = after
    return render_table(headers) or None


def _flag(value: bytes) -> bool | None:
    """Return an AMQP boolean, or a string that reads as one; ``None`` for all else."""
    if value[:1] == b"t":
        return value[1:] != b"\0"
    return _TRUTHS.get(value[5:]) if value[:1] in _TEXTS else None
