"""Rooms with real windows, whose sessions record what is written to them."""

from asyncio import TimerHandle
from collections.abc import Callable, Iterator, Sequence
from time import time

from bridge.clock import SteadyClock
from bridge.core.frames import EncodedMessages
from bridge.core.identity import Identity
from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions
from bridge.metrics import Metrics
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Window

OUTBOUND_BYTES = 1000


class FakeSession:
    """A session, and its own transport, that records writes and the frames in them."""

    def __init__(self, *, is_polling: bool) -> None:
        self.frames: list[bytes] = []
        self.writes: list[bytes] = []
        self.expected_replies = 0
        self.is_full = False
        self.is_broken = False
        self.is_polling = is_polling

    @property
    def transport(self) -> "FakeSession | None":
        """Itself, unless it polls."""
        return None if self.is_polling else self

    def get_write_buffer_size(self) -> int:
        """Return the limit if it is full; raises if it is broken."""
        if self.is_broken:
            raise ZeroDivisionError
        return OUTBOUND_BYTES if self.is_full else 0

    def write(self, data: bytes) -> None:
        """Record a write and the payloads of its frames."""
        self.writes.append(data)
        while data:
            end = 2 + data[1]  # all frames here are short
            self.frames.append(data[2:end])
            data = data[end:]

    def send_encoded(self, messages: EncodedMessages) -> bool:
        """Record a write unless it is full."""
        if self.get_write_buffer_size():
            return False
        if messages.frames:
            self.write(messages.frames)
        return True

    def expect_replies(self, count: int) -> None:
        """Add to the expected replies."""
        self.expected_replies += count


class FakeTimer:
    """A timer of `FakeTimers`."""

    def __init__(self, when_s: float, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.is_canceled = False
        self._when_s = when_s

    def when(self) -> float:
        """Return when it is due."""
        return self._when_s

    def cancel(self) -> None:
        """Do not call."""
        self.is_canceled = True


class FakeTimers:
    """The clock and the timers of an event loop that does not run."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._timers: list[FakeTimer] = []

    def time(self) -> float:
        """Return the time."""
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], None]) -> TimerHandle:
        """Note a timer."""
        timer = FakeTimer(when, callback)
        self._timers.append(timer)
        return timer  # type: ignore[return-value] # what rooms use of it

    def pass_until(self, when_s: float) -> None:
        """Let the time pass, and call each timer when it is due."""
        while due := [each for each in self.pending if each.when() <= when_s]:
            timer = min(due, key=FakeTimer.when)
            self._timers.remove(timer)
            self.now_s = max(self.now_s, timer.when())
            timer.callback()
        self.now_s = when_s

    @property
    def pending(self) -> list[FakeTimer]:
        """The timers that are neither due nor canceled."""
        return [each for each in self._timers if not each.is_canceled]


class RoomsFixture:
    """Rooms, and what they report."""

    def __init__(self) -> None:
        self.clock_ahead_s = 0.0  # a change is a jump
        self.metrics = Metrics()
        self.behind: list[Window] = []
        self.late: list[Stored] = []  # of the windows in `behind`
        self.timers = FakeTimers()
        self.presence: list[tuple[str, int]] = []  # users, and their windows then
        self.rooms = Rooms(
            self.metrics,
            outbound_bytes=OUTBOUND_BYTES,
            catch_up=self._catch_up,
            clock=SteadyClock(wall=lambda: time() + self.clock_ahead_s),
            timers=lambda: self.timers,
            on_presence=self._note_presence,
        )
        self._sids: Iterator[int] = iter(range(1000))

    def _catch_up(self, window: Window, late: Sequence[Stored]) -> None:
        self.behind.append(window)
        self.late += late

    def _note_presence(self, user: str) -> None:
        self.presence.append((user, len(self.rooms.windows_of(user))))

    def window(
        self,
        user: str,
        *,
        is_open: bool = True,
        manual: bool = False,
        offset: int = 0,
        polls: bool = False,
    ) -> Window:
        """Join a window to the room of `user`; with `is_open` its gate is open."""
        window = Window(
            f"sid{next(self._sids)}",
            FakeSession(is_polling=polls),  # type: ignore[arg-type] # what rooms use of it
            Identity(user, None),
            epoch="e",
            offset=offset,
            delivered=0,
            has_manual_acks=manual,
            connected_s=0,
        )
        assert self.rooms.reserve(user, at_most=1000)
        self.rooms.join(window)
        self.rooms.release(user)
        if is_open:
            assert self.rooms.open_gate(window)
        return window


def stored(
    user: str,
    offset: int,
    deadline_s: float | None = None,
    *,
    options: MessageOptions | None = None,
) -> Stored:
    """Return a message as the live feed brings it."""
    message = Message(user, "message", b"%d" % offset, 0.0, None, deadline_s)
    message.options = options
    return Stored(message, offset)


def session_of(window: Window) -> FakeSession:
    """Return the session of a window."""
    session: object = window.session
    assert isinstance(session, FakeSession)
    return session


def frames(window: Window) -> list[bytes]:
    """Return the packets that were written to a window."""
    return session_of(window).frames


def writes(window: Window) -> list[bytes]:
    """Return the writes to a window."""
    return session_of(window).writes
