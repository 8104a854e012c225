"""
How a failed delivery is settled, and the properties of the copies that are published.

There are three kinds of faults. A *permanent* one is found by `parse_delivery`: the
delivery is dead-lettered at once. A *transient* one (the store or the broker is away) is
waited out by the pipeline and never gets here. An *unexpected* one, a bug or a message
that the store refuses, is retried through the retry queues, and dead-lettered when no
attempt is left.

A copy keeps body and properties byte for byte, with three exceptions. In each case the
broker would act on the copy as on an original: `expiration` moves to a header, because the
copy would expire in the retry queue; `user_id` moves to a header, because the broker checks
it against the bridge's login; and the broker's own death records are dropped, because it
may take the copy for a cycle and discard it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from bridge.core.message import Delivery, Rejection, carried_deadline_ms
from bridge.core.message_options import OPTION_NAMES
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
# Headers that stay with a message through retries, dead letters and redrives. Any producer
# can set them, so they are kept short, and only deduplication depends on them.
_CARRIED_TEXTS: Final = (Header.REDRIVEN_ID, Header.USER_ID)
_CARRIED_MAX_BYTES: Final = 255
# Written by the broker when it dead-letters a message or counts its deliveries.
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
# RabbitMQ's default frame_max. The properties are surrounded by 7 bytes of frame header,
# 1 of frame end, and 12 of content header.
PROPERTIES_MAX_BYTES: Final = 131072 - 20
# The smallest frame_max is 4096. It has room for the bridge's headers and some short
# strings if the error text is short as well.
_ERROR_CUT_CHARACTERS: Final = 200


# Written by quorum queues: how often the message was returned to the queue.
_DELIVERY_COUNT: Final = "x-delivery-count"
# A message that was in flight at this many ends of sessions is a suspect (see
# `is_suspect`). One that crashed this many trials is dead-lettered.
_SUSPECT_AFTER: Final = 2
_TRIALS_MAX: Final = 2
# So many suspects are tried together. After a crash, as many are tried alone.
SUSPECTS_TOGETHER: Final = 64


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Publish a copy that returns after `delay_s`, as attempt `attempt`."""

    attempt: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Publish a copy to the dead letters; `attempt` was the last one."""

    rejection: Rejection
    attempt: int


def attempt_of(delivery: Delivery) -> int:
    """Return the number of this attempt, counted from 1."""
    written = header_int(delivery.properties.headers, Header.ATTEMPT)
    # Any producer can set the header: a value out of range counts as a first attempt.
    return written if written is not None and 1 <= written <= 1000 else 1


def settle_unexpected(
    attempt: int, problem: str, *, delays_s: Sequence[float]
) -> RetryAfter | DeadLetter:
    """
    Choose the settlement of an attempt that failed unexpectedly.

    Args:
        attempt: The attempt that failed, counted from 1.
        problem: The text of the error.
        delays_s: The waits before the second attempt, the third, and so on.

    """
    if attempt <= len(delays_s):
        return RetryAfter(attempt=attempt + 1, delay_s=delays_s[attempt - 1])
    text = f"attempt {attempt}: {problem}"
    return DeadLetter(Rejection(DeadLetterReason.ATTEMPTS_EXHAUSTED, text), attempt)


def is_suspect(delivery: Delivery) -> bool:
    """
    Whether `delivery` may crash the process.

    It was in flight when earlier sessions ended. So were its neighbors, and a lost
    connection leaves the same trace. This is no proof of a crash, so suspects are tried
    together, and alone if the process died in that trial; the store records both. Only a
    message that was tried alone becomes a dead letter because of crashes.
    """
    if not delivery.redelivered:
        return False
    count = header_int(delivery.properties.headers, _DELIVERY_COUNT)
    return count is not None and count >= _SUSPECT_AFTER


def trial_key(delivery: Delivery) -> bytes:
    """Return 16 bytes that identify the message, the same at each delivery."""
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


def joint_trial_key(delivery: Delivery) -> bytes:
    """Return the key of trials in which the message was not alone."""
    return b"g" + trial_key(delivery)


def settle_trial(trial: int) -> DeadLetterReason | None:
    """
    Return ``None`` to try a suspect once more, or the reason to dead-letter it.

    Args:
        trial: The number of this trial, from 1; the process died in each one before.

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
        letter: Why it is dead-lettered.
        now_s: Unix time.
        letter_id: Identifies this dead letter, even among identical copies.
        max_bytes: The limit of one frame, at least 4076. If the producer's headers leave
            no room for the bridge's, they are dropped, and `x-bridge-headers-dropped`
            counts their bytes. If that is not enough, properties that only the producer
            understands are dropped as well, and the error text is cut: a dead letter that
            cannot be written would block all newer deliveries.

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
        retry: The next attempt.
        deadline_s: The message's deadline, which a header carries from now on.
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
    Return the properties with which a dead letter is published to the inbound queue.

    The headers that it got as a dead letter are removed. Its time to live starts again,
    because a redriven message is meant to arrive. `user_id` stays in its header, because
    the broker compares the property with the bridge's login.

    Args:
        delivery: The dead letter.
        redriven_id: The same at each redrive of this dead letter. The inbox recognizes
            repeats by it if the message has no id of its own.
        expiration: The expiration of the original, in milliseconds as digits.
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
    complete = copied.with_headers(
        added, dropped_prefix=HEADER_PREFIX, carried=OPTION_NAMES
    )
    if len(render_properties(complete)) <= max_bytes:
        return complete
    added[Header.HEADERS_DROPPED] = len(original.headers or b"")
    bare = replace(copied, headers=_short_options(copied.headers or b""))
    cut = bare.with_headers(added, dropped_prefix=HEADER_PREFIX, carried=OPTION_NAMES)
    if len(render_properties(cut)) <= max_bytes:
        return cut
    # Keep the properties that identify the message; drop those for its producer.
    bare = replace(
        bare, correlation_id=None, reply_to=None, app_id=None, cluster_id=None
    )
    if Header.ERROR in added:
        added[Header.ERROR] = str(added[Header.ERROR])[:_ERROR_CUT_CHARACTERS]
    return bare.with_headers(added, dropped_prefix=HEADER_PREFIX, carried=OPTION_NAMES)


def _short_options(table: bytes) -> bytes:
    """Return the headers without which the message would be delivered in another way."""
    return b"".join(
        entry
        for name, _, entry in iter_table(table)
        if name in OPTION_NAMES and len(entry) <= _CARRIED_MAX_BYTES
    )


def _carried(original: Properties) -> dict[str, str | int | bytes]:
    carried: dict[str, str | int | bytes] = {}
    redrives = header_int(original.headers, Header.REDRIVES)
    if redrives is not None and 0 <= redrives < 2**31:
        carried[Header.REDRIVES] = redrives
    for name in _CARRIED_TEXTS:
        text = header_bytes(original.headers, name)
        if text is not None and len(text) <= _CARRIED_MAX_BYTES:
            carried[name] = text
    return carried


def _without_broker_headers(table: bytes) -> bytes:
    return b"".join(
        entry for name, _, entry in iter_table(table) if name not in _BROKER_HEADERS
    )
