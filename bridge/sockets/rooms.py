"""
Rooms: the windows of each user, and the writing of new messages to all of them.

A message is one frame that is written to every transport of a room: there is no task,
queue or copy per window. Rooms are fed only by the live feed of the inbox, so windows see
what the inbox holds, in its order.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from math import inf

from bridge.clock import SteadyClock
from bridge.core.frames import EncodedMessages, encode_messages
from bridge.core.journal import Journal, JournalEntry
from bridge.core.message import Message, Stored
from bridge.enums import Stage
from bridge.metrics import Metrics
from bridge.sockets.window import BroadcastGroup, Window
from bridge.tracing import Tracing

# Messages, and the number of windows that they were written to.
_Written = tuple[EncodedMessages, int]


class Room:
    """
    The windows of one user.

    Attributes:
        user: The user.
        windows: All windows, also those whose gate is closed.
        group: Windows with an open gate that are written to together.
        individual: The other windows with an open gate: they poll, or their replay has
            read ahead of the group.
        reserved: Windows that are about to join; they keep the room.
        fed_offset: The newest offset that the live feed has brought.
        pending: The user's messages while a batch is sorted by user.

    """

    __slots__ = (
        "fed_offset",
        "group",
        "individual",
        "pending",
        "reserved",
        "user",
        "windows",
    )

    def __init__(self, user: str) -> None:
        self.user = user
        self.windows: list[Window] = []
        self.group = BroadcastGroup()
        self.individual: list[Window] = []
        self.reserved = 0
        self.fed_offset = 0
        self.pending: list[Stored] | None = None

    def open_gate(self, window: Window) -> bool:
        """Open the gate of `window`; false if it has not received what was fed."""
        if self.fed_offset > window.offset:
            return False
        window.is_live = True
        if not self.group.add(window):
            self.individual.append(window)
        return True

    def close_gate(self, window: Window) -> None:
        """Write nothing more to `window`; closing a closed gate does nothing."""
        if not window.is_live:
            return
        window.is_live = False
        if window.is_in_group:
            self.group.remove(window)
        else:
            self.individual.remove(window)

    def regroup(self) -> None:
        """Move individual windows that have received the same messages to the group."""
        for window in [each for each in self.individual if self.group.add(each)]:
            self.individual.remove(window)


class Rooms:
    """
    All rooms of this bridge.

    `catch_up` is called with a window whose gate was closed,
    because too many bytes wait for its client or the feed has a gap: it must read the
    inbox.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        outbound_bytes: int,
        catch_up: Callable[[Window], None],
        clock: SteadyClock,
        journal: Journal | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._outbound_bytes = outbound_bytes
        self._catch_up = catch_up
        self._tracing = tracing
        self.journal = journal or Journal()
        self._rooms: dict[str, Room] = {}
        self._count = 0

    def limit_outbound(self, outbound_bytes: int) -> None:
        """Let at most `outbound_bytes` wait for one client from now on."""
        self._outbound_bytes = outbound_bytes

    # --- windows

    def __len__(self) -> int:
        """Return the number of windows."""
        return self._count

    def __iter__(self) -> Iterator[Window]:
        """Iterate over a snapshot of all windows."""
        rooms = tuple(self._rooms.values())
        return iter([window for room in rooms for window in room.windows])

    @property
    def user_count(self) -> int:
        """How many users have a room."""
        return len(self._rooms)

    @property
    def users(self) -> Collection[str]:
        """The users that have a room."""
        return self._rooms.keys()

    def windows_of(self, user: str) -> Sequence[Window]:
        """Return a snapshot of the windows of `user`."""
        room = self._rooms.get(user)
        return tuple(room.windows) if room else ()

    def reserve(self, user: str, *, at_most: int) -> bool:
        """Reserve a place for a window of `user`; false if `at_most` are taken."""
        room = self._rooms.get(user)
        if room is None:
            room = self._rooms[user] = Room(user)
        if len(room.windows) + room.reserved >= at_most:
            return False
        room.reserved += 1
        return True

    def release(self, user: str) -> bool:
        """Give up a reserved place; true if the room was empty and is deleted."""
        room = self._rooms[user]
        room.reserved -= 1
        return self._delete_if_empty(room)

    def join(self, window: Window) -> None:
        """Add `window`, with its gate closed, to the room that was reserved for it."""
        self._rooms[window.user].windows.append(window)
        self._count += 1
        self.journal.connected(window.user, at_s=window.connected_s)

    def open_gate(self, window: Window) -> bool:
        """
        Let `window` receive new messages if its replay has caught up.

        Returns:
            False if the feed has brought messages that the window has not received: they
            passed its closed gate and must be read from the inbox.

        """
        return self._rooms[window.user].open_gate(window)

    def leave(self, window: Window) -> bool:
        """Remove `window` from its room; true if the room was empty and is deleted."""
        room = self._rooms.get(window.user)
        if room is None or window not in room.windows:
            return False
        room.windows.remove(window)
        self._count -= 1
        room.close_gate(window)
        return self._delete_if_empty(room)

    def _delete_if_empty(self, room: Room) -> bool:
        if room.windows or room.reserved:
            return False
        del self._rooms[room.user]
        return True

    def reset(self, user: str) -> None:
        """Expect offsets of a new epoch, which start at 1, also for new windows."""
        room = self._rooms.get(user)
        if room is not None:
            room.fed_offset = 0

    # --- messages

    def emit(self, batch: Sequence[Stored]) -> None:
        """Write new messages to every window of their users with an open gate, in order."""
        now_s = self._clock.wall_s()
        rooms = self._rooms
        fed: list[Room] = []
        published_s = inf  # the oldest known one
        for stored in batch:
            message = stored.message
            room = rooms.get(message.user)
            if room is None:
                continue
            if room.pending is None:
                room.pending = [stored]
                fed.append(room)
                if message.published_s is not None:
                    published_s = min(published_s, message.published_s)
            else:
                room.pending.append(stored)
        emitted = 0
        try:
            for room in fed:
                emitted += self._emit_to_room(room, room.pending or (), now_s)
        finally:
            # If a room raised, the rooms after it find a gap at their next message and
            # read these from the inbox.
            for room in fed:
                room.pending = None
        if emitted:
            self._metrics.emitted.inc(emitted)
            # A batch is in the order of consumption: its first message is the oldest.
            oldest_s = batch[0].message.taken_s
            self._metrics.age.observe(max(0.0, now_s - oldest_s))
            if published_s < inf:
                self._metrics.publish_to_page.observe(max(0.0, now_s - published_s))

    def emit_ephemeral(self, messages: Sequence[Message]) -> None:
        """
        Write messages that no inbox holds to the windows whose gate is open.

        Each carries the position that its window has already, so it changes no recovery. A
        window that reads too slowly for it does not receive it.
        """
        emitted = 0
        for message in messages:
            room = self._rooms.get(message.user)
            if room is None or message.is_expired(self._clock.read()):
                continue
            group = room.group
            if group.windows:
                part = self._encode_at(message, group.windows[0])
                full = group.write(part.frames, outbound_bytes=self._outbound_bytes)
                group.advance(group.offset, written=1)
                emitted += len(group.windows) - len(full)
            for window in room.individual:
                part = self._encode_at(message, window)
                emitted += window.session.send_encoded(part)
        if emitted:
            self._metrics.emitted.inc(emitted)

    def _encode_at(self, message: Message, window: Window) -> EncodedMessages:
        stored = [Stored(message, window.offset)]
        return encode_messages(stored, epoch=window.epoch, read_clock=self._clock.read)

    def _emit_to_room(
        self, room: Room, messages: Sequence[Stored], now_s: float
    ) -> int:
        """Return how many messages were written, counted once for each window."""
        first, last = messages[0].offset, messages[-1].offset
        room.fed_offset = last
        group, individual = room.group, room.individual
        if not (group.windows or individual):
            return 0
        epoch = (group.windows or individual)[0].epoch
        encoded = encode_messages(messages, epoch=epoch, read_clock=self._clock.read)
        # A gap inside the batch: windows must have received all of it already, or read
        # the inbox.
        before = first - 1 if last - first + 1 == len(messages) else last
        if group.offset == before and group.windows and not individual:  # nearly always
            windows = self._write_to_group(room, encoded, last)
            if len(encoded.packets) < len(messages):
                messages = self._note_expired(messages, encoded, now_s)
            self._note_written(messages, [windows] * len(messages), now_s)
            return windows * len(messages)
        written: list[_Written] = []
        if group.offset < before:
            for window in tuple(group.windows):
                self._fall_behind(room, window)
        if group.windows and group.offset < last:  # else its replay has read all of it
            at = group.offset
            part = encoded if at == before else encoded.after(at)
            written.append((part, self._write_to_group(room, part, last)))
        self._write_to_individuals(room, encoded, (before, last), written)
        if len(encoded.packets) < len(messages):
            messages = self._note_expired(messages, encoded, now_s)
        self._note_written(messages, _windows_per_message(messages, written), now_s)
        return sum([len(part.packets) * windows for part, windows in written])

    def _write_to_group(self, room: Room, part: EncodedMessages, last: int) -> int:
        """Write to the group; return how many windows it holds after that."""
        group, packets = room.group, part.packets
        if packets:
            for window in group.write(part.frames, outbound_bytes=self._outbound_bytes):
                self._fall_behind(room, window)
        group.advance(last, written=len(packets))
        return len(group.windows)

    def _write_to_individuals(
        self,
        room: Room,
        encoded: EncodedMessages,
        span: tuple[int, int],
        written: list[_Written],
    ) -> None:
        """Write to the windows outside the group, and add to `written`."""
        before, last = span
        for window in tuple(room.individual):
            at = window.offset
            if at >= last:
                continue
            part = encoded if at <= before else encoded.after(at)
            if at < before or (part.packets and not window.session.send_encoded(part)):
                self._fall_behind(room, window)
                continue
            window.advance(last)
            written.append((part, 1))
        room.regroup()

    def _fall_behind(self, room: Room, window: Window) -> None:
        """Close the gate of a window, which then reads the inbox at its own pace."""
        room.close_gate(window)
        self._metrics.fell_behind.inc()
        self._catch_up(window)

    def _note_written(
        self, messages: Sequence[Stored], windows: Sequence[int], now_s: float
    ) -> None:
        """Record how many windows each message was written to."""
        if any(windows):
            self.journal.written(messages, windows, at_s=now_s)
            if self._tracing is not None:
                self._tracing.written(messages, windows, now_s=now_s)

    def _note_expired(
        self, messages: Sequence[Stored], encoded: EncodedMessages, now_s: float
    ) -> Sequence[Stored]:
        """Count and record the expired messages; return the others."""
        self._metrics.left_out.inc(len(messages) - len(encoded.packets))
        offsets = {offset for offset, _ in encoded.packets}
        for stored in messages:
            if stored.offset not in offsets:
                message = stored.message
                self.journal.note(
                    JournalEntry(
                        now_s,
                        Stage.EXPIRED,
                        message.user,
                        message.id,
                        stored.offset,
                        text="before it could be written",
                    )
                )
        return [stored for stored in messages if stored.offset in offsets]


def _windows_per_message(
    messages: Sequence[Stored], written: Sequence[_Written]
) -> Sequence[int]:
    """Return how many windows received each message; a part holds the last messages."""
    windows = [0] * len(messages)
    for part, count in written:
        for index in range(len(messages) - len(part.packets), len(messages)):
            windows[index] += count
    return windows
