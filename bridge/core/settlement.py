"""
How a delivery ends, and what is written to a message that is published again.

Faults have three kinds. A *permanent* one was told by `parse_delivery`: dead letter at
once. A *transient* one (store or broker away) is waited out by the pump and never gets
here. An *unexpected* one, a bug or a message that the store refuses, is tried again
through the retry queues and becomes a dead letter when they are used up.

What is published again keeps its body and properties byte for byte, with three
exceptions, each because the broker would otherwise act on the copy as on an original:
`expiration` moves to a header (the copy would expire where it waits), `user_id` moves
out (the broker checks it against our login) and the broker's own death records are
dropped (it may take a copy that carries them for a cycle and discard it).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from bridge.core.message import Delivery, Rejection, carried_deadline_ms
from bridge.core.properties import (
    PERSISTENT,
    Properties,
    header_bytes,
    header_int,
    iter_table,
    render_properties,
)
from bridge.enums import HEADER_PREFIX, DeadLetterReason, Header

_ERROR_MAX_CHARACTERS: Final = 1000
# What stays with a message through retries, dead letters and redrives. Anybody can
# publish these: they are kept short, and nothing is decided by them but dedupe.
_CARRIED_INTS: Final = (Header.REDRIVES,)
_CARRIED_TEXTS: Final = (Header.REDRIVEN_ID, Header.USER_ID)
_CARRIED_MAX_BYTES: Final = 255
# Written by the broker on its own dead lettering and delivery counting (traps 2.2).
_BROKER_HEADERS: Final = frozenset(
    {
        b"x-death",
        b"x-delivery-count",
        b"x-acquired-count",
        b"x-first-death-exchange",
        b"x-first-death-queue",
        b"x-first-death-reason",
        b"x-last-death-exchange",
        b"x-last-death-queue",
        b"x-last-death-reason",
    }
)
# A content header must fit into one frame (AMQP 0-9-1 section 4.2.6.1). 128 KiB is
# RabbitMQ's frame_max by default; 7 bytes of frame header, 1 of frame end, 12 of
# content header stand around the properties.
PROPERTIES_MAX_BYTES: Final = 131072 - 20
# A broker may be told to take no more than 4096. Then there is room for our headers and
# some short strings, if the text of the error is short as well.
_ERROR_CUT_CHARACTERS: Final = 200


# Written by quorum queues: how often a message came back because its consumer went away.
_DELIVERY_COUNT: Final = "x-delivery-count"
# The crash net (see `is_suspect`): so often in flight when a session ended makes a
# suspect, and so often alone in hand when the process died makes a culprit.
_SUSPECT_AFTER: Final = 2
_TRIALS_MAX: Final = 2


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Publish it again so that it comes back after `delay_s`, as attempt `attempt`."""

    attempt: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Set it aside; `attempt` is the one that was the last."""

    rejection: Rejection
    attempt: int


def attempt_of(delivery: Delivery) -> int:
    """Return which attempt this delivery is, from 1; the header is the bridge's own."""
    written = header_int(delivery.properties.headers, Header.ATTEMPT)
    # Anybody can publish the header: a value out of range counts as a first attempt.
    return written if written is not None and 1 <= written <= 1000 else 1


def settle_unexpected(
    attempt: int, problem: str, *, delays_s: Sequence[float]
) -> RetryAfter | DeadLetter:
    """
    Choose the settlement of an attempt that failed in a way nobody foresaw.

    Args:
        attempt: The attempt that failed, counted from 1.
        problem: The text of its error.
        delays_s: The wait before the second attempt, the third, and so on.

    """
    if attempt <= len(delays_s):
        return RetryAfter(attempt=attempt + 1, delay_s=delays_s[attempt - 1])
    text = f"attempt {attempt}: {problem}"
    return DeadLetter(Rejection(DeadLetterReason.ATTEMPTS_EXHAUSTED, text), attempt)


def is_suspect(delivery: Delivery) -> bool:
    """
    Whether `delivery` may be what makes the process die.

    It was in flight when earlier sessions ended; so were its neighbours, and a broker that
    was restarted leaves the same trace. So a suspect is not blamed, it is handled alone,
    with a note of that in the store: only what was alone in hand at a death is.
    """
    if not delivery.redelivered:
        return False
    count = header_int(delivery.properties.headers, _DELIVERY_COUNT)
    return count is not None and count >= _SUSPECT_AFTER


def trial_key(delivery: Delivery) -> bytes:
    """Return what tells this message from others, the same at each delivery; 16 bytes."""
    properties = delivery.properties
    digest = blake2b(digest_size=16)
    for part in (
        delivery.routing_key,
        properties.message_id or b"",
        properties.type or b"",
        delivery.body,
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def settle_trial(trial: int) -> DeadLetterReason | None:
    """
    Decide whether a suspect is handled once more.

    Args:
        trial: Which trial of it this is, from 1; each one before ended with the process.

    """
    return DeadLetterReason.CRASHED if trial > _TRIALS_MAX else None


def dead_letter_properties(
    delivery: Delivery,
    letter: DeadLetter,
    *,
    now_s: float,
    letter_id: str | None = None,
    max_bytes: int = PROPERTIES_MAX_BYTES,
) -> Properties:
    """
    Return the properties with which `delivery` is published to the dead letters.

    Args:
        delivery: The original.
        letter: Why it is set aside.
        now_s: Unix time.
        letter_id: Tells this letter from all others, also from one that is the same
            byte by byte.
        max_bytes: What fits into one frame, at least 4076; if the producer's headers
            leave no room for ours, they are dropped and `x-bridge-headers-dropped` says
            how many bytes. If that is not enough, the properties that only the producer
            understands go as well, and the text of the error is cut: a dead letter that
            cannot be written would hold up all that is behind it.

    """
    original = delivery.properties
    added: dict[str, str | int | bytes] = {
        Header.REASON: letter.rejection.reason,
        Header.ERROR: letter.rejection.text[:_ERROR_MAX_CHARACTERS],
        Header.TIME: int(now_s),
        Header.ATTEMPT: letter.attempt,
        Header.ORIGIN_EXCHANGE: delivery.exchange,
        Header.ORIGIN_QUEUE: delivery.queue,
        Header.ROUTING_KEY: delivery.routing_key,
    }
    if letter_id is not None:
        added[Header.DEAD_LETTER_ID] = letter_id
    if original.expiration is not None:
        added[Header.EXPIRATION] = original.expiration
    deadline_ms = carried_deadline_ms(original)
    if deadline_ms is not None:
        added[Header.DEADLINE] = deadline_ms
    return _copy_with(original, added, max_bytes=max_bytes)


def retry_properties(
    delivery: Delivery,
    retry: RetryAfter,
    *,
    deadline_s: float | None,
    max_bytes: int = PROPERTIES_MAX_BYTES,
) -> Properties:
    """
    Return the properties with which `delivery` is published to a retry queue.

    Args:
        delivery: The original.
        retry: Which attempt it will come back as.
        deadline_s: The message's deadline, which travels in a header from here on.
        max_bytes: As for a dead letter.

    """
    added: dict[str, str | int | bytes] = {Header.ATTEMPT: retry.attempt}
    if deadline_s is not None:
        added[Header.DEADLINE] = int(deadline_s * 1000)
    return _copy_with(delivery.properties, added, max_bytes=max_bytes)


def redrive_properties(
    delivery: Delivery,
    *,
    redriven_id: str,
    expiration: bytes | None,
    max_bytes: int = PROPERTIES_MAX_BYTES,
) -> Properties:
    """
    Return the properties with which a dead letter goes back to the inbound queue.

    What was written when it was set aside is taken off. Its time to live begins anew: a
    message that is redriven is meant to arrive. `user_id` stays in its header, because
    the broker compares the property with our own login.

    Args:
        delivery: The dead letter.
        redriven_id: The same each time this letter is redriven; the inbox knows a repeat
            by it where the message has no id of its own.
        expiration: The original's, in digits of milliseconds.
        max_bytes: As for a dead letter.

    """
    original = delivery.properties
    redrives = header_int(original.headers, Header.REDRIVES) or 0
    added: dict[str, str | int | bytes] = {
        Header.REDRIVES: min(max(redrives, 0), 2**31 - 2) + 1,
        Header.REDRIVEN_ID: redriven_id,
    }
    copied = _copy_with(original, added, max_bytes=max_bytes)
    return replace(copied, expiration=expiration)


def _copy_with(
    original: Properties, added: dict[str, str | int | bytes], *, max_bytes: int
) -> Properties:
    added = _carried(original) | added
    copied = replace(original, expiration=None, user_id=None, delivery_mode=PERSISTENT)
    if original.user_id is not None:
        added[Header.USER_ID] = original.user_id
    if original.headers:
        copied = replace(copied, headers=_without_broker_headers(original.headers))
    complete = copied.with_headers(added, dropped_prefix=HEADER_PREFIX)
    if len(render_properties(complete)) <= max_bytes:
        return complete
    added[Header.HEADERS_DROPPED] = len(original.headers or b"")
    bare = replace(copied, headers=None)
    cut = bare.with_headers(added, dropped_prefix=HEADER_PREFIX)
    if len(render_properties(cut)) <= max_bytes:
        return cut
    # What says what the message is stays; what only its producer understands goes.
    bare = replace(
        bare, correlation_id=None, reply_to=None, app_id=None, cluster_id=None
    )
    if Header.ERROR in added:
        added[Header.ERROR] = str(added[Header.ERROR])[:_ERROR_CUT_CHARACTERS]
    return bare.with_headers(added, dropped_prefix=HEADER_PREFIX)


def _carried(original: Properties) -> dict[str, str | int | bytes]:
    carried: dict[str, str | int | bytes] = {}
    for name in _CARRIED_INTS:
        number = header_int(original.headers, name)
        if number is not None and 0 <= number < 2**31:
            carried[name] = number
    for name in _CARRIED_TEXTS:
        text = header_bytes(original.headers, name)
        if text is not None and len(text) <= _CARRIED_MAX_BYTES:
            carried[name] = text
    return carried


def _without_broker_headers(table: bytes) -> bytes:
    return b"".join(
        entry for name, _, entry in iter_table(table) if name not in _BROKER_HEADERS
    )
