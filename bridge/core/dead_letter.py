"""
The description of a dead letter: why it was dead-lettered, for which user, and its id.

Dead letters are written by the bridge, with headers of its own, or by RabbitMQ, which
dead-letters messages that expire in an inbound queue or that no inbound queue received, and
describes that in `x-death`. The
counters that RabbitMQ adds while a message waits in the queue are not part of the description.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from bridge.core.broker_names import UNROUTED
from bridge.core.message import USER_MAX_BYTES, Delivery
from bridge.core.properties import (
    Properties,
    header_bytes,
    header_int,
    iter_array,
    iter_table,
)
from bridge.enums import EVENT_DEFAULT, DeadLetterReason, Header

# RabbitMQ's delivery counters. Browsing the queue changes them.
COUNTED_BY_BROKER: Final = frozenset({b"x-delivery-count", b"x-acquired-count"})
_X_DEATH: Final = b"x-death"
_ID_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """
    One message of the dead-letter queue, without its body.

    Attributes:
        id: Stable while the message is in the queue; opaque to clients.
        reason: Why it was dead-lettered.
        error: The exact problem; empty if unknown.
        user: The routing key, readable.
        event: The name of its event.
        message_id: The producer's id, readable.
        dead_s: Unix time at which it was dead-lettered; ``None`` if unknown.
        origin_exchange: The exchange that it was last published to.
        origin_queue: The queue that it was consumed from or expired in.
        attempts: How often the bridge tried to store it.
        redrives: How often it was redriven before.
        body_bytes: Size of the body.

    """

    id: str
    reason: DeadLetterReason
    error: str
    user: str
    event: str
    message_id: str | None
    dead_s: float | None
    origin_exchange: str
    origin_queue: str
    attempts: int
    redrives: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class DeadLetterCount:
    """How many dead letters matched, and how many were in the queue."""

    matching: int
    depth: int


class DeadLetterReader:
    """
    Describes dead letters in the order of the queue, from its head.

    Messages that are identical byte by byte differ in the number at the end of their ids, so
    each reader must see the queue from its head.

    Args:
        removed: Ids of dead letters that have left the queue since ids were handed out. The
            remaining identical messages keep their ids.

    """

    def __init__(self, removed: Collection[str] = ()) -> None:
        self.count = 0
        self._numbers: dict[bytes, int] = {}
        self._removed = removed

    def read(self, delivery: Delivery) -> StoredDeadLetter:
        """Return the description of the next dead letter, with its id."""
        properties = delivery.properties
        digest = _digest(delivery, properties)
        number = self._numbers.get(digest, 0) + 1
        while (dead_letter_id := _id(digest, number)) in self._removed:
            number += 1
        self._numbers[digest] = number
        self.count += 1
        return _describe(dead_letter_id, delivery, properties)


def _id(digest: bytes, number: int) -> str:
    return digest.hex() + (f"-{number}" if number > 1 else "")


def _digest(delivery: Delivery, properties: Properties) -> bytes:
    digest = blake2b(digest_size=_ID_BYTES)
    # RabbitMQ sorts the whole header table by name when it writes its counters.
    headers = b"".join(
        sorted(
            entry
            for name, _, entry in iter_table(properties.headers or b"")
            if name not in COUNTED_BY_BROKER
        )
    )
    for part in (
        delivery.routing_key,
        properties.message_id or b"",
        properties.type or b"",
        properties.timestamp or b"",
        properties.app_id or b"",
        properties.correlation_id or b"",
        headers,
        delivery.body,
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _describe(
    dead_letter_id: str, delivery: Delivery, properties: Properties
) -> StoredDeadLetter:
    headers = properties.headers
    death = _death(headers)
    dead_s = header_int(headers, Header.TIME)
    attempts = header_int(headers, Header.ATTEMPT)
    origin_exchange = header_bytes(headers, Header.ORIGIN_EXCHANGE)
    origin_queue = header_bytes(headers, Header.ORIGIN_QUEUE)
    error = header_bytes(headers, Header.ERROR)
    event = properties.type
    return StoredDeadLetter(
        id=dead_letter_id,
        reason=_reason(headers, death),
        error=_text(error) if error else _death_text(death),
        user=readable(routing_key_of(delivery)),
        event=readable(event) if event else EVENT_DEFAULT,
        message_id=_text(properties.message_id) if properties.message_id else None,
        dead_s=_time_s(dead_s, death),
        origin_exchange=readable(origin_exchange or death.exchange),
        origin_queue=readable(origin_queue or death.queue),
        attempts=attempts if attempts is not None and 0 <= attempts <= 10**6 else 0,
        redrives=redrives_of(properties),
        body_bytes=len(delivery.body),
    )


def routing_key_of(delivery: Delivery) -> bytes:
    """Return the routing key that the message was published with, byte for byte."""
    written = header_bytes(delivery.properties.headers, Header.ROUTING_KEY)
    if written is None or len(written) > USER_MAX_BYTES:  # no bridge wrote it
        return delivery.routing_key
    return written


def was_published_to(delivery: Delivery, exchange: str) -> bool:
    """Return whether RabbitMQ says that it dead-lettered a message of `exchange`."""
    return _death(delivery.properties.headers).exchange == exchange.encode()


def redrives_of(properties: Properties) -> int:
    """Return how often the message was redriven; 0 if the header is out of range."""
    # Any producer can publish the header.
    redrives = header_int(properties.headers, Header.REDRIVES) or 0
    return redrives if 0 <= redrives < 2**31 else 0


def original_expiration(properties: Properties) -> bytes | None:
    """Return the `expiration` with which it was published; ``None`` if unknown."""
    expiration = (
        header_bytes(properties.headers, Header.EXPIRATION)
        or _death(properties.headers).expiration
    )
    if expiration and expiration.isdigit() and len(expiration) <= 10:
        return expiration
    return None


def redriven_id(delivery: Delivery, dead_letter_id: str) -> str | None:
    """
    Return the id that every repetition of this dead letter's redrive carries.

    It depends on the content, because any producer can publish a dead letter with the
    header of another one, and the inbox drops a message with a known id as a duplicate.

    Args:
        delivery: The dead letter.
        dead_letter_id: Its `StoredDeadLetter.id`.

    Returns:
        ``None`` if nothing tells the dead letter from another one: it has no id of its own,
        or is not the first of several that are identical byte by byte.

    """
    written = header_bytes(delivery.properties.headers, Header.DEAD_LETTER_ID)
    is_repeated = "-" in dead_letter_id
    if written and len(written) <= 64 and written.isalnum() and not is_repeated:
        redrive = redrives_of(delivery.properties) + 1
        return f"{written.decode()}.{redrive}.{dead_letter_id}"
    return None


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


@lru_cache(maxsize=2048)  # thousands of dead letters share users and origins
def readable(raw: bytes) -> str:
    """Return bytes as text for JSON; invalid UTF-8 becomes backslash escapes."""
    return _text(raw)


# --- x-death, written by RabbitMQ ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Death:
    """The newest entry of `x-death`; empty if there is none."""

    reason: bytes = b""
    queue: bytes = b""
    exchange: bytes = b""
    time_s: int | None = None
    expiration: bytes = b""

    @property
    def is_unrouted(self) -> bool:
        """Whether it passed the queue of messages that no inbound queue received."""
        return self.queue.endswith(_UNROUTED_END)


_UNROUTED_END: Final = f".{UNROUTED}".encode()
_NO_DEATH: Final = _Death()


def _death(headers: bytes | None) -> _Death:
    for table in _deaths(headers):
        return _Death(
            reason=header_bytes(table, "reason") or b"",
            queue=header_bytes(table, "queue") or b"",
            exchange=header_bytes(table, "exchange") or b"",
            time_s=_timestamp(table),
            expiration=header_bytes(table, "original-expiration") or b"",
        )
    return _NO_DEATH


def _deaths(headers: bytes | None) -> Iterator[bytes]:
    if headers and _X_DEATH in headers:  # a fast search first: most messages have none
        for name, value, _ in iter_table(headers):
            if name == _X_DEATH and value[:1] == b"A":
                for item in iter_array(value[5:]):
                    if item[:1] == b"F":
                        yield item[5:]


def _timestamp(table: bytes) -> int | None:
    for name, value, _ in iter_table(table):
        if name == b"time" and value[:1] == b"T":
            return int.from_bytes(value[1:], "big")
    return None


def _reason(headers: bytes | None, death: _Death) -> DeadLetterReason:
    if death.is_unrouted:
        return DeadLetterReason.UNROUTED
    written = header_bytes(headers, Header.REASON)
    if written is not None:
        text = readable(written)
        return DeadLetterReason(text) if text in _REASONS else DeadLetterReason.OTHER
    return (
        DeadLetterReason.EXPIRED
        if death.reason == b"expired"
        else DeadLetterReason.OTHER
    )


_REASONS: Final = frozenset(reason.value for reason in DeadLetterReason)


def _death_text(death: _Death) -> str:
    if not death.reason:
        return ""
    if death.is_unrouted:
        return f"published to {readable(death.exchange)} while no queue was bound"
    return f"RabbitMQ: {readable(death.reason)} in queue {readable(death.queue)}"


def _time_s(written: int | None, death: _Death) -> float | None:
    time_s = death.time_s if written is None else written
    # Other programs may write milliseconds. Such a value is out of range and ignored.
    return float(time_s) if time_s is not None and 0 <= time_s < 10**11 else None
