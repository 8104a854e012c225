"""
A publisher with minimal CPU usage: prepared AMQP frames over one socket, with confirms.

It blocks the bench's process, which has nothing else to do.
"""

import random
import socket
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

from tests.bench.windows import STAMP_BASE
from tests.unit.amqp import wire

_LIMIT_S: Final = 60.0
_CHANNEL: Final = 1
_PERSISTENT: Final = b"\x10\x00\x02"  # only the property delivery-mode, 2
# The header x-bridge-receipt, true, and the same.
_RECEIPT: Final = b"\x30\x00" + wire.long(b"\x10x-bridge-receiptt\x01") + b"\x02"
_CONFIRM_CLASS, _QUEUE_CLASS = 85, 50
_ACK: Final = (60, 80)
# The most unconfirmed publishes; it bounds the broker's memory without slowing it down.
_UNCONFIRMED: Final = 2000
BODY_BYTES: Final = 200


def body() -> bytes:
    """Return 200 bytes of JSON that contain the current time."""
    stamp = time.monotonic_ns() // 1000 + STAMP_BASE
    head = b'{"t":%d,"text":"' % stamp
    return head + b"x" * (BODY_BYTES - len(head) - 2) + b'"}'


class RawPublisher:
    """One connection with one channel in confirm mode."""

    def __init__(self, url: str) -> None:
        """Connect; `url` contains the login."""
        parts = urlsplit(url)
        self._socket = socket.create_connection(
            (parts.hostname or "127.0.0.1", parts.port or 5672), timeout=_LIMIT_S
        )
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""
        self._published = 0
        self._confirmed = 0  # all delivery tags up to this one
        self._confirmed_ahead: set[int] = set()
        self._log_in(unquote(parts.username or ""), unquote(parts.password or ""))
        self._call(_CONFIRM_CLASS, 10, b"\0", answer=11)

    def close(self) -> None:
        """Close the socket, without an AMQP close."""
        self._socket.close()

    # --- publishing

    def burst(
        self, exchange: str, users: list[str], number: int, *, receipts: bool = False
    ) -> None:
        """
        Publish `number` messages to `users`, round robin, as fast as possible; confirmed.

        They ask for receipts if `receipts` is set.
        """
        properties = _RECEIPT if receipts else _PERSISTENT
        name = exchange.encode()
        keys = [user.encode() for user in users]
        for start in range(0, number, 200):
            self._send(
                b"".join(
                    self._frames(name, keys[at % len(keys)], properties)
                    for at in range(start, min(start + 200, number))
                )
            )
            while self._published - self._confirmed > _UNCONFIRMED:
                self._read(wait=True)
        self.settle()

    def steadily(
        self, exchange: str, users: list[str], *, rate: float, seconds: float, seed: int
    ) -> int:
        """
        Publish to random users with random pauses, like many independent workers.

        Returns:
            The number of messages; all are confirmed.

        """
        rng = random.Random(seed)  # noqa: S311 - the same for each server
        name = exchange.encode()
        keys = [user.encode() for user in users]
        start_s = due_s = time.monotonic()
        number = 0
        while due_s - start_s < seconds:
            pause_s = due_s - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            self._send(self._frames(name, rng.choice(keys)))
            number += 1
            if number % 50 == 0:
                self._read(wait=False)
            due_s += rng.expovariate(rate)
        self.settle()
        return number

    def beat(self, exchange: str, user: str, *, rate: float, number: int) -> None:
        """Publish `number` messages to one user at regular intervals."""
        start_s = time.monotonic()
        for count in range(number):
            pause_s = start_s + count / rate - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            self._send(self._frames(exchange.encode(), user.encode()))
        self.settle()

    def settle(self) -> None:
        """Wait until all messages are confirmed."""
        while self._confirmed < self._published:
            self._read(wait=True)

    def purge(self, queue: str) -> None:
        """Empty `queue`."""
        arguments = b"\0\0" + wire.short(queue.encode()) + b"\0"
        self._call(_QUEUE_CLASS, 30, arguments, answer=31)

    def _frames(
        self, exchange: bytes, key: bytes, properties: bytes = _PERSISTENT
    ) -> bytes:
        self._published += 1
        return wire.publish(
            _CHANNEL, exchange, key, raw_properties=properties, body=body()
        )

    # --- the wire

    def _log_in(self, user: str, password: str) -> None:
        self._send(b"AMQP\x00\x00\x09\x01")
        self._await(10, 10)
        response = wire.long(f"\0{user}\0{password}".encode())
        arguments = b"\0\0\0\0" + b"\x05PLAIN" + response + b"\x05en_US"
        self._send(wire.method(0, 11, arguments, class_id=10))
        self._await(10, 30)
        # Without heartbeats, because the bench is often idle for long.
        self._send(wire.method(0, 31, b"\x07\xff\0\2\0\0\0\0", class_id=10))
        self._send(wire.method(0, 40, b"\x01/\0\0", class_id=10))
        self._await(10, 41)
        self._send(wire.method(_CHANNEL, 10, b"\0", class_id=20))
        self._await(20, 11)

    def _call(
        self, class_id: int, method: int, arguments: bytes, *, answer: int
    ) -> None:
        self._send(wire.method(_CHANNEL, method, arguments, class_id=class_id))
        self._await(class_id, answer)

    def _await(self, class_id: int, method: int) -> None:
        found: list[tuple[int, int]] = []
        while (class_id, method) not in found:
            self._read(wait=True, on_method=lambda *ids: found.append(ids))

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _read(
        self, *, wait: bool, on_method: Callable[[int, int], None] | None = None
    ) -> None:
        try:
            data = self._socket.recv(1 << 16, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            message = "the broker closed the connection"
            raise ConnectionError(message)
        data = self._held + data
        at = 0
        while len(data) - at >= 8:
            stop = at + 8 + int.from_bytes(data[at + 3 : at + 7], "big")
            if stop > len(data):
                break
            if data[at] == wire.METHOD:
                self._take(data[at + 7 : stop - 1], on_method)
            at = stop
        self._held = data[at:]

    def _take(
        self, method: bytes, on_method: Callable[[int, int], None] | None
    ) -> None:
        ids = (int.from_bytes(method[:2], "big"), int.from_bytes(method[2:4], "big"))
        if ids == _ACK:
            tag = int.from_bytes(method[4:12], "big")
            if method[12]:
                self._confirmed = max(self._confirmed, tag)
            else:
                self._confirmed_ahead.add(tag)  # single acks may arrive out of order
            while self._confirmed + 1 in self._confirmed_ahead:
                self._confirmed += 1
                self._confirmed_ahead.discard(self._confirmed)
        elif ids[1] in (40, 50) and ids[0] in (10, 20):
            raise ConnectionError(method[4:].decode(errors="replace"))
        elif on_method is not None:
            on_method(*ids)
