"""Rooms with windows in them, whose connections keep what is written to them."""

from collections.abc import Iterator

from bridge.core.frames import EncodedMessages
from bridge.core.identity import Identity
from bridge.core.message import Message, Stored
from bridge.metrics import Metrics
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Window

OUTBOUND_BYTES = 1000


class Line:
    """A connection that keeps what is written to it, packet by packet and piece by piece."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.pieces: list[bytes] = []
        self.answers = 0
        self.is_full = False
        self.is_broken = False
        self.is_written_at_once = True

    @property
    def transport(self) -> "Line | None":
        """Itself, while it is a websocket."""
        return self if self.is_written_at_once else None

    def get_write_buffer_size(self) -> int:
        """Say how much waits."""
        if self.is_broken:
            raise ZeroDivisionError
        return OUTBOUND_BYTES if self.is_full else 0

    def write(self, piece: bytes) -> None:
        """Keep what is in frames."""
        self.pieces.append(piece)
        while piece:
            end = 2 + piece[1]  # all are short
            self.frames.append(piece[2:end])
            piece = piece[end:]

    def write_burst(self, burst: EncodedMessages) -> bool:
        """Do so unless it is full, however it is written."""
        if self.get_write_buffer_size():
            return False
        if burst.frames:
            self.write(burst.frames)
        return True

    def expect_answers(self, number: int) -> None:
        """Count what may be answered."""
        self.answers += number


class House:
    """Rooms, and what they report."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.delivered: list[tuple[str, int]] = []
        self.behind: list[Window] = []
        self.rooms = Rooms(
            self.metrics,
            mark_delivered=lambda user, offset: self.delivered.append((user, offset)),
            catch_up=self.behind.append,
        )
        self.rooms.outbound_bytes = OUTBOUND_BYTES
        self._sids: Iterator[int] = iter(range(1000))

    def window(
        self,
        user: str,
        *,
        is_open: bool = True,
        manual: bool = False,
        offset: int = 0,
        polls: bool = False,
    ) -> Window:
        """Let a window into the room of `user`."""
        line = Line()
        line.is_written_at_once = not polls
        window = Window(
            f"sid{next(self._sids)}",
            line,  # type: ignore[arg-type] # all that rooms use of a carrier
            Identity(user, None),
            epoch="e",
            offset=offset,
            has_manual_acks=manual,
            connected_s=0,
        )
        assert self.rooms.expect(user, at_most=1000)
        self.rooms.join(window)
        self.rooms.expect_no_more(user)
        if is_open:
            assert self.rooms.open_gate(window)
        return window


def stored(user: str, offset: int, deadline_s: float | None = None) -> Stored:
    """Return a message as the feed brings it."""
    return Stored(
        Message(user, "message", b"%d" % offset, 0.0, None, deadline_s), offset
    )


def line(window: Window) -> Line:
    """Return the connection of a window."""
    line: object = window.carrier
    assert isinstance(line, Line)
    return line


def frames(window: Window) -> list[bytes]:
    """Return the packets that were written to a window."""
    return line(window).frames


def pieces(window: Window) -> list[bytes]:
    """Return them as they were written."""
    return line(window).pieces
