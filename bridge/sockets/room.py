"""
One user's windows, and how what is new gets into all of them.

Most windows are websockets that have had the same: all that the room has had. Those are
written to by their TCP transports alone, which is all that has to be touched for each: a
message for a thousand windows meets memory that went cold during a thousand sends, and
each object on the way to a transport costs as much as a tenth of the send itself. How far
they have read, and how many answers their pages may send, is known by the room.
"""

import asyncio
from collections.abc import Sequence

from bridge.core.message import Stored
from bridge.sockets.window import Window


class Room:
    """
    One user's windows.

    Attributes:
        user: Whose.
        windows: All of them, those whose gate is shut, too.
        level: Windows written to together: they have had everything up to `offset`.
        others: Those whose gate is open, too, but that poll, or that have read ahead of
            `level` in their replay: written to one by one.
        expected: How many are about to join: the room is kept for them.
        fed: The newest offset that the live feed has brought, to any gate or none.
        offset: What the windows of `level` have had; means nothing without one.
        written: Messages that were written to `level`, since the room is there.
        news: What a batch brings, while it is sorted by user.

    """

    __slots__ = (
        "_marking",
        "_transports",
        "expected",
        "fed",
        "level",
        "news",
        "offset",
        "others",
        "user",
        "windows",
        "written",
    )

    def __init__(self, user: str) -> None:
        self.user = user
        self.windows: list[Window] = []
        self.level: list[Window] = []
        self._transports: list[asyncio.Transport] = []  # of `level`, in its order
        self._marking = 0  # windows of `level` whose messages are delivered by writing
        self.others: list[Window] = []
        self.expected = 0
        self.fed = 0
        self.offset = 0
        self.written = 0
        self.news: list[Stored] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nobody is here, nor about to come."""
        return not self.windows and not self.expected

    @property
    def marks_by_writing(self) -> bool:
        """Whether a message is delivered when it is written to `level`."""
        return self._marking > 0

    def open_gate(self, window: Window) -> bool:
        """
        Let `window` get what is new from now on, if its replay has caught up.

        Returns:
            False if the feed has brought something meanwhile that the window has not
            had: it passed a closed gate, and has to be read from the inbox.

        """
        if self.fed > window.offset:
            return False
        window.is_live = True
        if not self._lift(window):
            self.others.append(window)
        return True

    def shut_gate(self, window: Window) -> None:
        """Let `window` get nothing any more; it knows then how far it has read."""
        if not window.is_live:
            return
        window.is_live = False
        if window.level is not None:
            place = self.level.index(window)
            del self.level[place], self._transports[place]
            self._marking -= not window.has_manual_acks
            window.leave_level()
        else:
            self.others.remove(window)

    def lift_others(self) -> None:
        """Let those of `others` into `level` that have had the same by now."""
        for window in [each for each in self.others if self._lift(each)]:
            self.others.remove(window)

    def _lift(self, window: Window) -> bool:
        transport = window.carrier.transport
        if transport is None or (self.level and window.offset != self.offset):
            return False
        self.offset = window.offset
        self.level.append(window)
        self._transports.append(transport)
        self._marking += not window.has_manual_acks
        window.join_level(self)
        return True

    def write(self, frames: bytes, *, at_most: int) -> Sequence[Window]:
        """
        Write `frames` to every window of `level`; `advance` says what was in them.

        A fault half-way is a hole at the next message, and closed from the inbox; what
        some windows had of it they get again.

        Args:
            frames: Of websockets.
            at_most: Bytes that may wait for one page.

        Returns:
            The windows that would have more waiting, and got nothing: shut their gates.

        """
        full: list[asyncio.Transport] = []
        at_most -= len(frames)
        for transport in self._transports:
            if transport.get_write_buffer_size() > at_most:
                full.append(transport)
            else:
                transport.write(frames)
        if not full:
            return ()
        return [self.level[self._transports.index(each)] for each in full]

    def advance(self, offset: int, *, written: int) -> None:
        """Know that `level` has had everything up to `offset`, so many messages of it now."""
        self.offset = offset
        self.written += written
