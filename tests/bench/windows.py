"""
Windows with minimal CPU usage: raw WebSocket frames over epoll, in one process.

The bench starts it as `python -m tests.bench.windows`. It reads commands as JSON lines from
stdin and answers each with a line on stdout. It looks only at the first bytes of a frame,
so that thousands of windows and tens of thousands of events per second leave the processor
to the server.
"""

import errno
import os
import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final

import orjson

# The server requires a key; its answer to it is not checked here.
_UPGRADE: Final = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
    b"Host: 127.0.0.1:%d\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_RECEIVE_BYTES: Final = 1 << 16
_CONTROL: Final = 0
_RETRY_S: Final = 1.0
# The field "t" of the data has microseconds since boot plus this base: always 16 digits,
# which a JavaScript number can hold.
STAMP_BASE: Final = 10**15
_STAMP: Final = b'{"t":'
_STAMP_DIGITS: Final = 16


def masked(payload: bytes) -> bytes:
    """Return a client's text frame, with a mask of zeros."""
    length = len(payload)
    if length < 126:
        return bytes((0x81, 0x80 | length)) + b"\0\0\0\0" + payload
    return b"\x81\xfe" + length.to_bytes(2, "big") + b"\0\0\0\0" + payload


_PONG: Final = masked(b"3")
# Packets of a window with manual acks: an ack of a position with the id 1, and its answer.
_ACK: Final = b'421["ack","%b"]'
_ACKED: Final = b"431"


class RawWindow:
    """
    One connection.

    Attributes:
        token: Its token.
        auth: The data of its CONNECT packet, with the token.
        acking_us: When each message was sent whose ack is not answered, oldest first;
            ``None`` if the window does not ack.

    """

    __slots__ = (
        "acking_us",
        "auth",
        "held",
        "is_connected",
        "is_open",
        "socket",
        "token",
    )

    def __init__(self, connection: socket.socket, token: str, *, acks: bool) -> None:
        self.socket = connection
        self.token = token
        self.auth = b'{"token":"%b"%b}' % (
            token.encode(),
            b',"acks":"manual"' if acks else b"",
        )
        self.acking_us: deque[int] | None = deque() if acks else None
        self.held = b""
        self.is_open = False  # the WebSocket upgrade is complete
        self.is_connected = False  # the Socket.IO CONNECT is answered


class WindowPool:
    """
    All windows of this process.

    Attributes:
        events: The number of events named `message`.
        latencies_us: While `is_timed`, the latency of each event from its publish; of a
            window that acks, until its ack is answered.
        lost: The number of connected windows that the server closed.
        retried: How often a window tried again, because its connection was reset before it
            was connected.
        answers: The number of requests that were answered with data.

    """

    def __init__(self) -> None:
        self.events = 0
        self.connected = 0
        self.synced = 0
        self.lost = 0
        self.retried = 0
        self.answers = 0
        self._requests = b""  # the packet of a request after its id
        self._request_number = 0
        self._request_every_s = 0.0
        self._askers: list[RawWindow] = []
        self._started_s = 0.0
        self._asked_s: list[float] = []  # when each request was sent, by its id
        self.is_timed = False
        self.latencies_us: list[int] = []
        self.windows: dict[int, RawWindow] = {}
        self._poll = select.epoll()
        self._poll.register(_CONTROL, select.EPOLLIN)
        self._waiting: deque[str] = deque()  # tokens of windows that are not opened yet
        self._opening = 0
        self._concurrency = 0
        self._port = 0
        self._acks = False
        self._addresses = 0
        self._retries: deque[tuple[float, str]] = deque()  # when, and the token

    # --- opening

    def open(
        self, port: int, tokens: list[str], *, concurrency: int, acks: bool
    ) -> None:
        """
        Connect a window for each token, at most `concurrency` at the same time.

        With `acks`, each window acks each message.
        """
        self._port = port
        self._acks = acks
        self._concurrency = concurrency
        self._waiting.extend(tokens)
        self._open_more()

    def _open_more(self) -> None:
        while self._waiting and self._opening < self._concurrency:
            self._opening += 1
            self._connect(self._waiting.popleft())

    def _connect(self, token: str) -> None:
        connection = socket.socket()
        connection.settimeout(0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Many loopback addresses, so that the ports of one address do not run out.
        self._addresses = self._addresses % 200 + 1
        connection.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        connection.bind((f"127.0.0.{self._addresses}", 0))
        code = connection.connect_ex(("127.0.0.1", self._port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        window = RawWindow(connection, token, acks=self._acks)
        self.windows[connection.fileno()] = window
        self._poll.register(connection.fileno(), select.EPOLLOUT)

    def _connected(self, window: RawWindow) -> None:
        if window.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._retry(window)
            return
        self._poll.modify(window.socket.fileno(), select.EPOLLIN)
        self._send(window, _UPGRADE % self._port)

    @staticmethod
    def _send(window: RawWindow, data: bytes) -> None:
        # After a reset, the next read reports it.
        with suppress(ConnectionError):
            window.socket.send(data)

    def _retry(self, window: RawWindow) -> None:
        """Connect again later, as a stock client does, in the place of a reset window."""
        self.retried += 1
        self._retries.append((time.monotonic() + _RETRY_S, window.token))
        self._forget(window)

    def _upgraded(self, window: RawWindow, data: bytes) -> bytes:
        """Return the data after the upgrade response; empty while it is incomplete."""
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            window.held = data
            return b""
        if b" 101 " not in head[:20]:
            raise OSError(errno.EPROTO, head.decode(errors="replace"))
        window.is_open = True
        window.held = b""
        self._send(window, masked(b"40" + window.auth))
        return rest

    # --- requests

    def ask(self, *, event: str, data: object, number: int, rate: float) -> None:
        """Send `number` requests at a steady rate, from the windows in turn."""
        self._requests = orjson.dumps([event, data])
        self._request_number = number
        self._request_every_s = 1 / rate
        self._asked_s = []
        self.answers = 0
        self.latencies_us.clear()
        self._askers = list(self.windows.values())
        self._started_s = time.monotonic()

    @property
    def is_asking(self) -> bool:
        """Whether requests are still to be sent."""
        return len(self._asked_s) < self._request_number

    def ask_due(self) -> None:
        """Send the requests that are due."""
        now_s = time.monotonic()
        while self.is_asking:
            number = len(self._asked_s)
            if now_s < self._started_s + number * self._request_every_s:
                return
            self._asked_s.append(now_s)
            packet = b"42%d%b" % (number, self._requests)
            self._askers[number % len(self._askers)].socket.send(masked(packet))

    def _answered(self, payload: bytes) -> None:
        number, _, answer = payload[2:].partition(b"[")
        if not answer.startswith(b'{"ok":true'):
            raise OSError(errno.EPROTO, answer.decode())
        self.answers += 1
        took_s = time.monotonic() - self._asked_s[int(number)]
        self.latencies_us.append(round(took_s * 1_000_000))

    # --- reading

    def poll_once(self, timeout_s: float) -> bool:
        """Read available data of all windows; true if a command is available."""
        has_command = False
        windows = self.windows
        while self._retries and self._retries[0][0] < time.monotonic():
            self._connect(self._retries.popleft()[1])
        for number, happened in self._poll.poll(timeout_s):
            if number == _CONTROL:
                has_command = True
                continue
            window = windows.get(number)
            if window is None:
                continue
            if happened & select.EPOLLOUT:
                self._connected(window)
                continue
            self._read(window)
        return has_command

    def _read(self, window: RawWindow) -> None:
        try:
            data = window.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            if not window.is_connected:
                self._retry(window)
                return
            self.lost += 1
            self._forget(window)
            return
        if not window.is_open:
            data = self._upgraded(window, window.held + data)
        if data:
            self._read_frames(window, data)

    def _read_frames(self, window: RawWindow, data: bytes) -> None:
        if window.held:
            data = window.held + data
            window.held = b""
        at = 0
        end = len(data)
        now_us = time.monotonic_ns() // 1000 + STAMP_BASE if self.is_timed else 0
        while end - at >= 2:
            length = data[at + 1]
            start = at + 2
            if length == 126:
                length = int.from_bytes(data[start : start + 2], "big")
                start += 2
            elif length == 127:
                length = int.from_bytes(data[start : start + 8], "big")
                start += 8
            stop = start + length
            if stop > end or start > end:
                break
            # 42["message",... is by far the most frequent packet.
            if data[start + 4 : start + 5] == b"m" and data[start] == 0x34:
                self.events += 1
                if now_us:
                    self._time(window, data[start:stop], now_us)
            else:
                self._handle_other(window, data[at], data[start:stop])
            at = stop
        if at < end:
            window.held = data[at:]

    def _time(self, window: RawWindow, packet: bytes, now_us: int) -> None:
        stamp = packet.find(_STAMP) + len(_STAMP)
        sent_us = int(packet[stamp : stamp + _STAMP_DIGITS])
        if window.acking_us is None:
            self.latencies_us.append(now_us - sent_us)
            return
        window.acking_us.append(sent_us)
        position = packet[packet.rindex(b'"', 0, -2) + 1 : -2]
        window.socket.send(masked(_ACK % position))

    def _handle_other(self, window: RawWindow, head: int, payload: bytes) -> None:
        if head == 0x88:
            return  # a close frame; the end of the connection follows
        if payload == b"2":
            window.socket.send(_PONG)
        elif self._asked_s and payload.startswith(b"43"):
            self._answered(payload)
        elif payload.startswith(_ACKED):
            if window.acking_us:
                now_us = time.monotonic_ns() // 1000 + STAMP_BASE
                self.latencies_us.append(now_us - window.acking_us.popleft())
        elif payload.startswith(b"40"):
            window.is_connected = True
            self.connected += 1
            self._opening -= 1
            self._open_more()
        elif payload.startswith(b'42["bridge:sync"'):
            self.synced += 1
        elif payload.startswith(b"44"):
            raise OSError(errno.EACCES, payload.decode())

    # --- closing

    def _forget(self, window: RawWindow) -> None:
        del self.windows[window.socket.fileno()]
        window.socket.close()

    def close(self, *, keep: int) -> None:
        """Close all but the oldest `keep` windows, without a close frame."""
        for window in list(self.windows.values())[keep:]:
            if window.is_connected:
                self.connected -= 1
            self._forget(window)

    def facts(self) -> dict[str, int]:
        """Return the current counts."""
        return {
            "events": self.events,
            "answers": self.answers,
            "connected": self.connected,
            "synced": self.synced,
            "lost": self.lost,
            "retried": self.retried,
            "timed": len(self.latencies_us),
        }


class CommandLoop:
    """Reads commands and answers them in order."""

    def __init__(self, pool: WindowPool) -> None:
        self._pool = pool
        self._wanted: tuple[str, int, float] | None = None

    def run(self) -> None:
        """Run until stdin is closed."""
        while True:
            self._pool.ask_due()
            wait_s = 0.0005 if self._pool.is_asking else 0.05
            if self._pool.poll_once(wait_s) and not self._read_command():
                return
            self._answer_wait()

    def _read_command(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        command = orjson.loads(line)
        pool = self._pool
        match command.pop("do"):
            case "open":
                pool.open(**command)
                self._reply(pool.facts())
            case "wait":
                limit_s = time.monotonic() + command["within_s"]
                self._wanted = (command["what"], command["number"], limit_s)
            case "ask":
                pool.ask(**command)
                self._reply({})
            case "time":
                pool.latencies_us.clear()
                pool.is_timed = command["on"]
                self._reply({})
            case "latencies":
                self._reply({"us": sorted(pool.latencies_us)})
                pool.latencies_us.clear()
            case "close":
                pool.close(**command)
                pool.events = pool.synced = 0
                self._reply(pool.facts())
            case "reset":
                pool.events = pool.synced = 0
                self._reply(pool.facts())
        return True

    def _answer_wait(self) -> None:
        if self._wanted is None:
            return
        what, number, limit_s = self._wanted
        now_s = time.monotonic()
        if self._pool.facts()[what] >= number or now_s > limit_s:
            self._wanted = None
            self._reply(self._pool.facts())

    def _reply(self, facts: dict[str, Any]) -> None:
        sys.stdout.write(orjson.dumps(facts).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    CommandLoop(WindowPool()).run()
