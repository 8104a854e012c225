"""
What a dead letter says of itself: why it is there, whose it is, which one it is.

Letters come from the bridge, with its own headers, or from RabbitMQ, which sets aside
what expired in the inbound queue and tells so in `x-death`. What the broker adds while a
letter lies there (how often it was looked at) is no part of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from bridge.core.message import Delivery
from bridge.core.properties import (
    Properties,
    header_bytes,
    header_int,
    iter_array,
    iter_table,
)
from bridge.enums import EVENT_DEFAULT, DeadLetterCause, Header

# Counts of the broker, which a look may change.
COUNTED_BY_BROKER: Final = frozenset({b"x-delivery-count", b"x-acquired-count"})
_X_DEATH: Final = b"x-death"
_ID_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Letter:
    """
    One dead letter, without its body.

    Attributes:
        id: Stable, and opaque to clients.
        reason: Why it is there.
        error: What exactly was wrong; empty if nobody said.
        user: The routing key, readable.
        event: The event that it would have been.
        message_id: The producer's, readable.
        dead_s: Unix time at which it was set aside; ``None`` if nobody said.
        origin_exchange: Where it was published to, or came back through.
        origin_queue: Where it was taken from, or expired.
        attempts: How often the bridge tried.
        redrives: How often it was redriven before.
        body_bytes: Size of the body.

    """

    id: str
    reason: DeadLetterCause
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
class Count:
    """How many letters were found, and how many there were to look among."""

    matching: int
    depth: int


# Letters that are off the queue, by digest: which of several twins.
Gone = dict[str, set[int]]


class Letters:
    """
    Reads letters in the order of the queue, from its head: twins are told by number.

    Args:
        gone: Twins that were there when ids were given out, and are not any more.

    """

    def __init__(self, gone: Gone | None = None) -> None:
        self.count = 0
        self._seen: dict[bytes, int] = {}
        self._gone = gone or {}

    def read(self, delivery: Delivery) -> Letter:
        """Return what `delivery` says of itself, with its id."""
        properties = delivery.properties
        digest = _digest(delivery, properties)
        number = self._seen.get(digest, 0) + 1
        if self._gone:
            gone = self._gone.get(digest.hex(), ())
            while number in gone:
                number += 1
        self._seen[digest] = number
        self.count += 1
        letter_id = digest.hex() + (f"-{number}" if number > 1 else "")
        return _letter(letter_id, delivery, properties)


def note_gone(gone: Gone, letter_id: str) -> None:
    """Note in `gone` that this letter is off the queue."""
    digest, _, number = letter_id.partition("-")
    gone.setdefault(digest, set()).add(int(number or 1))


def _digest(delivery: Delivery, properties: Properties) -> bytes:
    digest = blake2b(digest_size=_ID_BYTES)
    # When the broker writes its count it sorts the whole table by name.
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


def _letter(letter_id: str, delivery: Delivery, properties: Properties) -> Letter:
    headers = properties.headers
    death = _death(headers)
    dead_s = header_int(headers, Header.TIME)
    attempts = header_int(headers, Header.ATTEMPT)
    origin_exchange = header_bytes(headers, Header.ORIGIN_EXCHANGE)
    origin_queue = header_bytes(headers, Header.ORIGIN_QUEUE)
    error = header_bytes(headers, Header.ERROR)
    event = properties.type
    return Letter(
        id=letter_id,
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
    return delivery.routing_key if written is None else written


def redrives_of(properties: Properties) -> int:
    """Return how often the message was redriven; anybody can publish the header."""
    redrives = header_int(properties.headers, Header.REDRIVES) or 0
    return redrives if 0 <= redrives < 2**31 else 0


def original_expiration(properties: Properties) -> bytes | None:
    """Return the `expiration` that it was published with, if that can be known."""
    expiration = (
        header_bytes(properties.headers, Header.EXPIRATION)
        or _death(properties.headers).expiration
    )
    if expiration and expiration.isdigit() and len(expiration) <= 10:
        return expiration
    return None


def redriven_id(delivery: Delivery) -> str | None:
    """
    Return what a repeat of this letter's redrive is known by.

    ``None`` if the letter cannot be told from another that is the same byte by byte: the
    second of them must not be taken for a repeat of the first.
    """
    written = header_bytes(delivery.properties.headers, Header.DEAD_LETTER_ID)
    if written and len(written) <= 64 and written.isalnum():
        return f"{written.decode()}.{redrives_of(delivery.properties) + 1}"
    return None


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


@lru_cache(maxsize=2048)  # thousands of letters share their users and their origins
def readable(raw: bytes) -> str:
    """Return bytes as text that JSON can hold; what is no UTF-8 becomes escapes."""
    return _text(raw)


# --- what the broker wrote ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Death:
    """The newest entry of `x-death`; empty where there is none."""

    reason: bytes = b""
    queue: bytes = b""
    exchange: bytes = b""
    time_s: int | None = None
    expiration: bytes = b""


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
    if headers and _X_DEATH in headers:  # a search in C first: most letters have none
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


def _reason(headers: bytes | None, death: _Death) -> DeadLetterCause:
    written = header_bytes(headers, Header.REASON)
    if written is not None:
        text = readable(written)
        return DeadLetterCause(text) if text in _REASONS else DeadLetterCause.OTHER
    return (
        DeadLetterCause.EXPIRED if death.reason == b"expired" else DeadLetterCause.OTHER
    )


_REASONS: Final = frozenset(reason.value for reason in DeadLetterCause)


def _death_text(death: _Death) -> str:
    if not death.reason:
        return ""
    return f"RabbitMQ: {readable(death.reason)} in queue {readable(death.queue)}"


def _time_s(written: int | None, death: _Death) -> float | None:
    time_s = death.time_s if written is None else written
    # Some write milliseconds; out of range it is not ours and says nothing.
    return float(time_s) if time_s is not None and 0 <= time_s < 10**11 else None
