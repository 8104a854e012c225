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


class RawWindow:
    """One connection."""

    __slots__ = ("held", "is_connected", "is_open", "socket", "token")

    def __init__(self, connection: socket.socket, token: str) -> None:
        self.socket = connection
        self.token = token
        self.held = b""
        self.is_open = False  # the WebSocket upgrade is complete
        self.is_connected = False  # the Socket.IO CONNECT is answered


class WindowPool:
    """
    All windows of this process.

    Attributes:
        events: The number of events named `message`.
        latencies_us: The latency of each event from its publish, while `is_timed`.
        lost: The number of windows that the server closed.

    """

    def __init__(self) -> None:
        self.events = 0
        self.connected = 0
        self.synced = 0
        self.lost = 0
        self.is_timed = False
        self.latencies_us: list[int] = []
        self.windows: dict[int, RawWindow] = {}
        self._poll = select.epoll()
        self._poll.register(_CONTROL, select.EPOLLIN)
        self._waiting: deque[str] = deque()  # tokens of windows that are not opened yet
        self._opening = 0
        self._concurrency = 0
        self._port = 0
        self._addresses = 0

    # --- opening

    def open(self, port: int, tokens: list[str], *, concurrency: int) -> None:
        """Connect a window for each token, at most `concurrency` at the same time."""
        self._port = port
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
        self.windows[connection.fileno()] = RawWindow(connection, token)
        self._poll.register(connection.fileno(), select.EPOLLOUT)

    def _connected(self, window: RawWindow) -> None:
        code = window.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self._poll.modify(window.socket.fileno(), select.EPOLLIN)
        window.socket.send(_UPGRADE % self._port)

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
        window.socket.send(masked(b'40{"token":"%b"}' % window.token.encode()))
        return rest

    # --- reading

    def poll_once(self, timeout_s: float) -> bool:
        """Read available data of all windows; true if a command is available."""
        has_command = False
        windows = self.windows
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
            try:
                data = window.socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                self.lost += 1
                self._forget(window)
                continue
            if not window.is_open:
                data = self._upgraded(window, window.held + data)
                if not data:
                    continue
            self._read_frames(window, data)
        return has_command

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
                    stamp = data.find(_STAMP, start, stop) + len(_STAMP)
                    sent_us = int(data[stamp : stamp + _STAMP_DIGITS])
                    self.latencies_us.append(now_us - sent_us)
            else:
                self._handle_other(window, data[at], data[start:stop])
            at = stop
        if at < end:
            window.held = data[at:]

    def _handle_other(self, window: RawWindow, head: int, payload: bytes) -> None:
        if head == 0x88:
            return  # a close frame; the end of the connection follows
        if payload == b"2":
            window.socket.send(_PONG)
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
            "connected": self.connected,
            "synced": self.synced,
            "lost": self.lost,
        }


class CommandLoop:
    """Reads commands and answers them in order."""

    def __init__(self, pool: WindowPool) -> None:
        self._pool = pool
        self._wanted: tuple[str, int, float] | None = None

    def run(self) -> None:
        """Run until stdin is closed."""
        while True:
            if self._pool.poll_once(0.05) and not self._read_command():
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
            case "time":
                pool.latencies_us.clear()
                pool.is_timed = command["on"]
                self._reply({})
            case "latencies":
                self._reply({"us": sorted(pool.latencies_us)})
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
