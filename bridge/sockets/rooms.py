"""
Rooms: which windows a user has open, and how a message gets into all of them.

Over python-socketio's manager. The library's keeps several dictionaries for each client
and starts a task for each window and message; here a room is a list, and a message is
one frame that is written to every transport in it.

A room is fed from the inbox's live feed and from nothing else, so its windows see what
the inbox holds, in its order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import time
from typing import Any

from socketio.async_manager import AsyncManager

from bridge.core import packets
from bridge.core.frames import event_packet, text_frame
from bridge.core.message import Stored
from bridge.core.position import Position
from bridge.metrics import Metrics
from bridge.sockets.window import Window


class Room:
    """
    One user's windows.

    Attributes:
        windows: All of them.
        open: Those whose gate is open: they are up to date and get what is new.
        expected: How many are about to join: the room is kept for them.
        fed: The newest offset that the live feed has brought, to any gate or none.

    """

    __slots__ = ("expected", "fed", "open", "user", "windows")

    def __init__(self, user: str) -> None:
        self.user = user
        self.windows: list[Window] = []
        self.open: list[Window] = []
        self.expected = 0
        self.fed = 0


class Rooms(AsyncManager):  # type: ignore[misc] # socketio has no types
    """
    All rooms of this bridge.

    `mark_delivered` is called with a user and an offset when a message has been written
    to at least one window of the user; `close_slow` with a window that does not read.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        mark_delivered: Callable[[str, int], None],
        close_slow: Callable[[Window], None],
    ) -> None:
        super().__init__()
        self._metrics = metrics
        self._mark_delivered = mark_delivered
        self._close_slow = close_slow
        self._rooms: dict[str, Room] = {}
        self._windows: dict[str, Window] = {}

    # --- who is where

    def __len__(self) -> int:
        """Count the windows."""
        return len(self._windows)

    def __iter__(self) -> Iterator[Window]:
        """Iterate over the windows as they are now."""
        return iter(tuple(self._windows.values()))

    @property
    def users(self) -> Iterable[str]:
        """The users that have a room."""
        return self._rooms.keys()

    def windows_of(self, user: str) -> Sequence[Window]:
        """Return the windows of `user` as they are now."""
        room = self._rooms.get(user)
        return tuple(room.windows) if room else ()

    def expect(self, user: str, *, at_most: int) -> bool:
        """Keep a place in the room of `user`; false if `at_most` are taken already."""
        room = self._rooms.get(user)
        if room is None:
            room = self._rooms[user] = Room(user)
        if len(room.windows) + room.expected >= at_most:
            return False
        room.expected += 1
        return True

    def expect_no_more(self, user: str) -> bool:
        """Give up the place that `expect` kept; true if the room is empty and gone."""
        room = self._rooms[user]
        room.expected -= 1
        return self._drop_if_empty(room)

    def join(self, window: Window) -> None:
        """Let `window` into the room that was kept for it, its gate closed."""
        self._rooms[window.user].windows.append(window)
        self._windows[window.sid] = window

    def open_gate(self, window: Window) -> bool:
        """
        Let `window` get what is new from now on, if its replay has caught up.

        Returns:
            False if the feed has brought something meanwhile that the window has not
            had: it passed a closed gate, and has to be read from the inbox.

        """
        room = self._rooms[window.user]
        if room.fed > window.offset:
            return False
        room.open.append(window)
        window.is_live = True
        return True

    def leave(self, window: Window) -> bool:
        """Take `window` out of its room; true if the room is empty and gone."""
        self._windows.pop(window.sid, None)
        room = self._rooms.get(window.user)
        if room is None or window not in room.windows:
            return False
        room.windows.remove(window)
        if window in room.open:
            room.open.remove(window)
        return self._drop_if_empty(room)

    def _drop_if_empty(self, room: Room) -> bool:
        if room.windows or room.expected:
            return False
        del self._rooms[room.user]
        return True

    # --- emit

    def feed(self, batch: Sequence[Stored]) -> None:
        """Write new messages to every open window of their users, in order."""
        now_s = time()
        emitted = 0
        oldest_s = now_s
        for stored in batch:
            message = stored.message
            room = self._rooms.get(message.user)
            if room is None:
                continue
            room.fed = stored.offset
            if not room.open:
                continue
            if stored.is_expired(now_s):
                self._metrics.left_out.inc()
                continue
            emitted += self._emit_to(room, stored)
            oldest_s = min(oldest_s, message.taken_s)
        if emitted:
            self._metrics.emitted.inc(emitted)
            self._metrics.age.observe(max(0.0, now_s - oldest_s))

    def _emit_to(self, room: Room, stored: Stored) -> int:
        message = stored.message
        offset = stored.offset
        windows = room.open
        position = str(Position(windows[0].epoch, offset))
        payload = event_packet(message.event, message.data, position)
        frame = text_frame(payload)
        slow: list[Window] = []
        count = 0
        is_delivered = False
        for window in windows:
            if offset <= window.offset:
                continue  # it has read so far in its replay already
            window.offset = offset
            if not window.carrier.write(payload, frame, offset):
                slow.append(window)
            elif window.delivers_by_writing:
                is_delivered = True
            count += 1
        if is_delivered:
            self._mark_delivered(room.user, offset)
        for window in slow:
            self._close_slow(window)
        return count

    # --- python-socketio's own interface, for whoever holds the server object

    async def emit(
        self,
        event: str,
        data: object,
        namespace: str,
        room: str | None = None,
        **options: Any,  # noqa: ANN401 - socketio's
    ) -> None:
        """
        Emit something that is not from an inbox: to one window or one user's windows.

        Raises:
            ValueError: If no room is named. The library would broadcast to everybody,
                for '' and [] too (traps 1.2, row 1).

        """
        where = options.get("to") or room
        if namespace != "/" or not isinstance(where, str) or not where:
            message = "a room or a window must be named"
            raise ValueError(message)
        packet = "4" + packets.event(event, data)
        for _, window in self.get_participants(namespace, where):
            window.carrier.write_packet(packet)

    def get_participants(self, namespace: str, room: str) -> Iterator[tuple[str, Any]]:  # noqa: ARG002 - socketio's
        """Yield the windows of the room ``user:<id>``, or the one window of that sid."""
        kind, _, user = room.partition(":")
        if kind == "user" and user:
            yield from ((window.sid, window) for window in self.windows_of(user))
        elif room in self._windows:
            yield room, self._windows[room]

    def is_connected(self, sid: str, namespace: str) -> bool:
        """Whether there is a window with that sid."""
        return namespace == "/" and sid in self._windows
