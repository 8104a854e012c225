"""
Windows that cost next to nothing: raw websocket frames over epoll, in one process.

Started by the bench as `python -m tests.bench.windows`; takes commands as lines of JSON on
stdin and answers each with one on stdout. Frames are cut and looked at by their first
bytes only, so that thousands of windows, and tens of thousands of events a second, leave
the processor to what is measured.
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

# The client's key is checked by nobody here; a server must only find one.
_UPGRADE: Final = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
    b"Host: 127.0.0.1:%d\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_RECEIVE_BYTES: Final = 1 << 16
_CONTROL: Final = 0
# Of "t" in the data: microseconds since the machine's start, and this, so that all have
# 16 digits and JavaScript's numbers hold them.
STAMP_BASE: Final = 10**15
_STAMP: Final = b'{"t":'
_STAMP_DIGITS: Final = 16


def masked(payload: bytes) -> bytes:
    """Return a client's text frame; a mask of zeros is one."""
    length = len(payload)
    if length < 126:
        return bytes((0x81, 0x80 | length)) + b"\0\0\0\0" + payload
    return b"\x81\xfe" + length.to_bytes(2, "big") + b"\0\0\0\0" + payload


_PONG: Final = masked(b"3")


class Window:
    """One connection, from connect() to its end."""

    __slots__ = ("held", "is_connected", "is_open", "socket", "token")

    def __init__(self, connection: socket.socket, token: str) -> None:
        self.socket = connection
        self.token = token
        self.held = b""
        self.is_open = False  # the upgrade was answered
        self.is_connected = False  # and CONNECT, too


class Crowd:
    """
    All windows of this process.

    Attributes:
        events: How many events named `message` came.
        latencies_us: From publish to here, of each, while `is_timed`.
        lost: Windows that the server closed.

    """

    def __init__(self) -> None:
        self.events = 0
        self.connected = 0
        self.synced = 0
        self.lost = 0
        self.is_timed = False
        self.latencies_us: list[int] = []
        self.windows: dict[int, Window] = {}
        self._poll = select.epoll()
        self._poll.register(_CONTROL, select.EPOLLIN)
        self._waiting: deque[str] = deque()  # tokens of windows to open
        self._opening = 0
        self._at_once = 0
        self._port = 0
        self._addresses = 0

    # --- opening

    def open(self, port: int, tokens: list[str], *, at_once: int) -> None:
        """Connect a window for each token, `at_once` of them being on their way."""
        self._port = port
        self._at_once = at_once
        self._waiting.extend(tokens)
        self._open_more()

    def _open_more(self) -> None:
        while self._waiting and self._opening < self._at_once:
            self._opening += 1
            self._connect(self._waiting.popleft())

    def _connect(self, token: str) -> None:
        connection = socket.socket()
        connection.settimeout(0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Loopback has many addresses: none of them runs out of ports.
        self._addresses = self._addresses % 200 + 1
        connection.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        connection.bind((f"127.0.0.{self._addresses}", 0))
        code = connection.connect_ex(("127.0.0.1", self._port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        self.windows[connection.fileno()] = Window(connection, token)
        self._poll.register(connection.fileno(), select.EPOLLOUT)

    def _connected(self, window: Window) -> None:
        code = window.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self._poll.modify(window.socket.fileno(), select.EPOLLIN)
        window.socket.send(_UPGRADE % self._port)

    def _upgraded(self, window: Window, data: bytes) -> bytes:
        """Return what follows the answer to the upgrade; all of it if it is not whole."""
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

    def turn(self, timeout_s: float) -> bool:
        """Read what came, for all windows; true if there is a command."""
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

    def _read_frames(self, window: Window, data: bytes) -> None:
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
            # 42["message",... is what there is by far the most of.
            if data[start + 4 : start + 5] == b"m" and data[start] == 0x34:
                self.events += 1
                if now_us:
                    stamp = data.find(_STAMP, start, stop) + len(_STAMP)
                    sent_us = int(data[stamp : stamp + _STAMP_DIGITS])
                    self.latencies_us.append(now_us - sent_us)
            else:
                self._take_other(window, data[at], data[start:stop])
            at = stop
        if at < end:
            window.held = data[at:]

    def _take_other(self, window: Window, head: int, payload: bytes) -> None:
        if head == 0x88:
            return  # the end of the connection follows
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

    def _forget(self, window: Window) -> None:
        del self.windows[window.socket.fileno()]
        window.socket.close()

    def close(self, *, keep: int) -> None:
        """Close all but the oldest `keep` windows, as pages do that are left."""
        for window in list(self.windows.values())[keep:]:
            if window.is_connected:
                self.connected -= 1
            self._forget(window)

    def facts(self) -> dict[str, int]:
        """Return what is known at this moment."""
        return {
            "events": self.events,
            "connected": self.connected,
            "synced": self.synced,
            "lost": self.lost,
        }


class Control:
    """Takes commands, one at a time."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._wanted: tuple[str, int, float] | None = None

    def run(self) -> None:
        """Serve until stdin is closed."""
        while True:
            if self._crowd.turn(0.05) and not self._take():
                return
            self._answer_wait()

    def _take(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        command = orjson.loads(line)
        crowd = self._crowd
        match command.pop("do"):
            case "open":
                crowd.open(**command)
                self._say(crowd.facts())
            case "wait":
                limit_s = time.monotonic() + command["within_s"]
                self._wanted = (command["what"], command["number"], limit_s)
            case "time":
                crowd.latencies_us.clear()
                crowd.is_timed = command["on"]
                self._say({})
            case "latencies":
                self._say({"us": sorted(crowd.latencies_us)})
            case "close":
                crowd.close(**command)
                crowd.events = crowd.synced = 0
                self._say(crowd.facts())
            case "reset":
                crowd.events = crowd.synced = 0
                self._say(crowd.facts())
        return True

    def _answer_wait(self) -> None:
        if self._wanted is None:
            return
        what, number, limit_s = self._wanted
        now_s = time.monotonic()
        if self._crowd.facts()[what] >= number or now_s > limit_s:
            self._wanted = None
            self._say(self._crowd.facts())

    def _say(self, facts: dict[str, Any]) -> None:
        sys.stdout.write(orjson.dumps(facts).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    Control(Crowd()).run()
