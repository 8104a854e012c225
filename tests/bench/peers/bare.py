"""
The minimum cost of a message in one process: the bare system calls.

It waits with epoll, receives deliveries, sends each message to the window of its user, and
acks them together. It publishes a receipt for each message with headers, without waiting for
a sign of the window or for confirms. It checks no token, understands only complete deliveries
of AMQP, and supports one window per user, so it is not usable as a server.
"""

import base64
import json
import os
import select
import socket
from datetime import UTC, datetime
from struct import Struct
from typing import Final

import orjson

from bridge.core.frames import event_packet, text_frame
from tests.bench.publisher import RawPublisher
from tests.unit.amqp import wire

_FRAME = Struct(">BHI").unpack_from
_HEAD_BYTES = 7
_DELIVER = b"\x00\x3c\x00\x3c"
_HEADERS = 0x20  # in the first byte of the flags of the properties
# Content type, delivery mode and message id.
_EVENT_FLAGS: Final = b"\x90\x80" + wire.short(b"application/json") + b"\x02"


class Consumer(RawPublisher):
    """A connection that also consumes."""

    def consume(
        self, exchange: bytes, queue: bytes, events: bytes, prefetch: int
    ) -> socket.socket:
        """Declare exchanges and queue, start to consume, and return the socket."""
        kind = wire.short(b"x-queue-type") + b"S" + wire.long(b"quorum")
        durable = b"\x02"
        calls = (
            (40, 10, wire.short(exchange) + wire.short(b"topic"), b"\0\0\0\0", 11),
            (40, 10, wire.short(events) + wire.short(b"topic"), b"\0\0\0\0", 11),
            (50, 10, wire.short(queue), wire.long(kind), 11),
        )
        for class_id, method, names, arguments, answer in calls:
            data = b"\0\0" + names + durable + arguments
            self._call(class_id, method, data, answer=answer)
        names = wire.short(queue) + wire.short(exchange) + wire.short(b"#")
        self._call(50, 20, b"\0\0" + names + b"\0\0\0\0\0", answer=21)
        self._call(60, 10, b"\0\0\0\0" + prefetch.to_bytes(2, "big") + b"\0", answer=11)
        arguments = b"\0\0" + wire.short(queue) + wire.short(b"c") + b"\0\0\0\0\0"
        self._send(wire.method(1, 20, arguments))
        return self._socket


def accept_window(listener: socket.socket, windows: dict[bytes, socket.socket]) -> None:
    """Complete the handshake of a window; its token names the user."""
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + text_frame(b"0{}"))
    frame = connection.recv(4096)
    mask = frame[4:8]  # its payload has 126 bytes at least
    packet = bytes(byte ^ mask[at % 4] for at, byte in enumerate(frame[8:]))
    claims = json.loads(packet[2:])["token"].split(".")[1]
    user = json.loads(base64.urlsafe_b64decode(claims + "=="))["sub"]
    windows[user.encode()] = connection
    connection.sendall(text_frame(b"40{}"))


def receipt(events: bytes, user: bytes, tag: bytes) -> bytes:
    """Return the frames of a receipt."""
    body = {
        "message_id": None,
        "user": user.decode(),
        "event": "message",
        "outcome": "delivered",
        "at": datetime.now(UTC),
        "delay_ms": 0,
    }
    return wire.publish(
        1,
        events,
        b"message.delivered",
        raw_properties=_EVENT_FLAGS + wire.short(tag.hex().encode() + b".delivered"),
        body=orjson.dumps(body),
    )


def deliver(
    data: bytes, windows: dict[bytes, socket.socket], events: bytes
) -> tuple[int, int, bytes]:
    """Send the complete deliveries; return their number, their bytes and their receipts."""
    at = count = 0
    end = len(data)
    receipts: list[bytes] = []
    while end - at >= _HEAD_BYTES + len(_DELIVER):
        _, _, size = _FRAME(data, at)
        head = at + size + 8
        if head > end:
            break
        if data[at + 7 : at + 11] != _DELIVER:
            at = head
            continue
        if end - head < _HEAD_BYTES:
            break
        body = head + _FRAME(data, head)[2] + 8
        if end - body < _HEAD_BYTES:
            break
        stop = body + _FRAME(data, body)[2] + 8
        if stop > end:
            break
        exchange = at + 12 + data[at + 11] + 9
        key = exchange + 1 + data[exchange]
        user = data[key + 1 : key + 1 + data[key]]
        packet = event_packet("message", data[body + 7 : stop - 1], "p")
        # The broker repeats what an earlier process had sent, but not acked, when it was killed.
        if (window := windows.get(user)) is not None:
            window.send(text_frame(packet))
        if data[head + 19] & _HEADERS:
            tag = at + 12 + data[at + 11]
            receipts.append(receipt(events, user, data[tag : tag + 8]))
        at = stop
        count += 1
    return count, at, b"".join(receipts)


def main() -> None:
    """Serve until the process is killed."""
    consumer = Consumer(os.environ["AMQP_URL"])
    exchange, queue, events = (
        os.environ[name].encode() for name in ("EXCHANGE", "QUEUE", "EVENTS")
    )
    broker = consumer.consume(exchange, queue, events, 4000)
    windows: dict[bytes, socket.socket] = {}
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(f"listening {listener.getsockname()[1]}", flush=True)
    epoll = select.epoll()
    for each in (broker, listener):
        epoll.register(each, select.EPOLLIN)
    held, tag = b"", 0
    while True:
        for number, _ in epoll.poll():
            if number == listener.fileno():
                accept_window(listener, windows)
                continue
            held += broker.recv(1 << 18)
            count, end, receipts = deliver(held, windows, events)
            held = held[end:]
            if count:
                tag += count
                ack = wire.method(1, 80, tag.to_bytes(8, "big") + b"\1")
                broker.sendall(receipts + ack)


main()
