"""
The least that a server of one process can pay for a message: the bare system calls.

Waits with epoll, receives what the broker has, cuts it, sends each message to its user's
window, acks all of it at once. It checks no token, understands no AMQP but deliveries that
come whole, and knows one window a user: nobody could use it.
"""

import base64
import json
import os
import select
import socket
from struct import Struct

from bridge.core.frames import event_packet, text_frame
from tests.bench.publisher import Publisher
from tests.unit.amqp import wire

_FRAME = Struct(">BHI").unpack_from
_HEAD_BYTES = 7
_DELIVER = b"\x00\x3c\x00\x3c"


class Consumer(Publisher):
    """A worker's connection that consumes."""

    def consume(self, exchange: bytes, queue: bytes, prefetch: int) -> socket.socket:
        """Declare what is needed, begin to consume, and return the connection."""
        kind = wire.short(b"x-queue-type") + b"S" + wire.long(b"quorum")
        durable = b"\x02"
        calls = (
            (40, 10, wire.short(exchange) + wire.short(b"topic"), b"\0\0\0\0", 11),
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


def let_in(listener: socket.socket, windows: dict[bytes, socket.socket]) -> None:
    """Open a window as the page expects it; its user is in its token."""
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


def cut(data: bytes, windows: dict[bytes, socket.socket]) -> tuple[int, int]:
    """Send what came whole; how many messages, and how many bytes they were."""
    at = count = 0
    end = len(data)
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
        windows[user].send(text_frame(packet))
        at = stop
        count += 1
    return count, at


def main() -> None:
    """Serve until it is ended."""
    consumer = Consumer(os.environ["AMQP_URL"])
    exchange, queue = os.environ["EXCHANGE"].encode(), os.environ["QUEUE"].encode()
    broker = consumer.consume(exchange, queue, 4000)
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
                let_in(listener, windows)
                continue
            held += broker.recv(1 << 18)
            count, upto = cut(held, windows)
            held = held[upto:]
            if count:
                tag += count
                broker.send(wire.method(1, 80, tag.to_bytes(8, "big") + b"\1"))


main()
