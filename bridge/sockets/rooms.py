"""
Rooms: the windows of each user, and the writing of new messages to all of them.

A message is one frame that is written to every transport of a room: there is no task,
queue or copy per window. Rooms are fed only by the live feed of the inbox, so windows see
what the inbox holds, in its order.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import Protocol

from bridge.clock import SteadyClock
from bridge.core.frames import EncodedMessages, encode_messages, encode_past
from bridge.core.held_values import HeldBudget, HeldValues
from bridge.core.journal import Journal, JournalEntry
from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions
from bridge.enums import PresenceChange, Stage
from bridge.metrics import Metrics
from bridge.sockets.window import BroadcastGroup, Window
from bridge.tracing import Tracing

# Messages, and the number of windows that they were written to.
_Written = tuple[EncodedMessages, int]


class Timers(Protocol):
    """The part of an event loop that rooms use."""

    def time(self) -> float:
        """Return the time of the loop."""

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call `callback` at a time of the loop."""


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
        replayed: The newest offset that a window had when its gate opened.
        pending: The user's messages while a batch is sorted by user.
        held: The throttled keys; ``None`` if there are none.
        timer: Calls when a message that is held back is due.

    """

    __slots__ = (
        "fed_offset",
        "group",
        "held",
        "individual",
        "pending",
        "replayed",
        "reserved",
        "timer",
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
        self.replayed = 0
        self.pending: list[Stored] | None = None
        self.held: HeldValues | None = None
        self.timer: asyncio.TimerHandle | None = None

    def open_gate(self, window: Window) -> bool:
        """Open the gate of `window`; false if it has not received what was fed."""
        if self.fed_offset > window.offset:
            return False
        window.open_gate()
        self.replayed = max(self.replayed, window.offset)
        if not self._add_to_group(window):
            self.individual.append(window)
        return True

    def _add_to_group(self, window: Window) -> bool:
        # The group lacks what is held back. A window may have read that from the inbox.
        has_read = self.late and self.late[0] <= window.replayed
        return not has_read and self.group.add(window)

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
        for window in [each for each in self.individual if self._add_to_group(each)]:
            self.individual.remove(window)

    @property
    def late(self) -> Sequence[int]:
        """The offsets of the messages that are held back, in order."""
        return () if self.held is None else self.held.offsets

    def lacking(self, window: Window) -> Sequence[Stored]:
        """Return what is held back from a window whose gate is open, oldest first."""
        if self.held is None:
            return ()
        return self.held.between(window.replayed, window.offset)

    def expect_throttle(
        self, options: MessageOptions, *, bytes_max: int, budget: HeldBudget
    ) -> None:
        """Hold messages back from now on if `options` ask for it."""
        if options.throttle_s is not None:
            self.held = HeldValues(bytes_max=bytes_max, budget=budget)

    def drop_held(self) -> None:
        """Hold nothing back; the messages are in the inbox."""
        if self.held is not None:
            self.held.drop()
            self.held = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Rooms:
    """
    All rooms of this bridge.

    `catch_up` is called with a window whose gate was closed, because too many bytes wait
    for its client or the feed has a gap: it must receive the messages that are passed with
    it, then read the inbox. `timers` returns the event loop. `on_presence` is called with a user
    whose first window has joined or whose last one has left.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        outbound_bytes: int,
        catch_up: Callable[[Window, Sequence[Stored]], None],
        clock: SteadyClock,
        timers: Callable[[], Timers] = asyncio.get_running_loop,
        tracked: Callable[[], Collection[str]] = tuple,
        on_presence: Callable[[str], None] | None = None,
        journal: Journal | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._clock = clock
        self._read_clock = clock.read
        self._metrics = metrics
        self._outbound_bytes = outbound_bytes
        self._catch_up = catch_up
        self._timers = timers
        self._tracked = tracked
        self._on_presence = on_presence
        self._tracing = tracing
        self.journal = journal or Journal()
        self._rooms: dict[str, Room] = {}
        self._held_budget = HeldBudget()
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
    def users(self) -> list[str]:
        """A copy of the names of the users who have a window."""
        return [user for user, room in self._rooms.items() if room.windows]

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
        windows = self._rooms[window.user].windows
        windows.append(window)
        self._count += 1
        self.journal.connected(window.user, at_s=window.connected_s)
        if len(windows) == 1:
            self._note_presence(window.user, PresenceChange.CONNECTED)

    def open_gate(self, window: Window) -> bool:
        """
        Let `window` receive new messages if its replay has caught up.

        Returns:
            False if the feed has brought messages that the window has not received: they
            passed its closed gate and must be read from the inbox.

        """
        if not self._rooms[window.user].open_gate(window):
            return False
        self.ask_for_proof(window)
        return True

    def ask_for_proof(self, window: Window) -> None:
        """
        Ask the page for a sign of life now if a worker waits for it.

        Otherwise the next regular ping would tell that the page has received its messages.
        """
        if window.user in self._tracked() and (
            window.would_deliver(self.received(window))
        ):
            window.session.ping(monotonic())

    def leave(self, window: Window) -> bool:
        """Remove `window` from its room; true if the room was empty and is deleted."""
        room = self._rooms.get(window.user)
        if room is None or window not in room.windows:
            return False
        room.windows.remove(window)
        self._count -= 1
        if not room.windows:
            self._note_presence(window.user, PresenceChange.DISCONNECTED)
        room.close_gate(window)
        return self._delete_if_empty(room)

    def _note_presence(self, user: str, change: PresenceChange) -> None:
        self.journal.presence(user, change, at_s=self._clock.wall_s())
        if self._on_presence is not None:
            self._on_presence(user)

    def _delete_if_empty(self, room: Room) -> bool:
        if room.windows or room.reserved:
            return False
        room.drop_held()
        del self._rooms[room.user]
        return True

    def reset(self, user: str) -> None:
        """Expect offsets of a new epoch, which start at 1, also for new windows."""
        room = self._rooms.get(user)
        if room is not None:
            room.fed_offset = room.replayed = 0
            room.drop_held()

    def received(self, window: Window) -> int:
        """Return the offset up to which everything was written to `window`."""
        room = self._rooms.get(window.user)
        lacking = room.lacking(window) if room and window.is_live else ()
        return lacking[0].offset - 1 if lacking else window.offset

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
            if message.options is not None and room.held is None:
                room.expect_throttle(
                    message.options,
                    bytes_max=self._outbound_bytes,
                    budget=self._held_budget,
                )
            pending = room.pending
            if pending is None:
                room.pending = [stored]
                fed.append(room)
                if message.published_s is not None:
                    published_s = min(published_s, message.published_s)
            else:
                pending.append(stored)
        emitted = 0
        try:
            for room in fed:
                emitted += self._emit_to_room(room, room.pending or (), now_s)
        finally:
            # If a room raised, the rooms after it find a gap at their next message and
            # read these from the inbox.
            for room in fed:
                room.pending = None
        self._ask_rooms(fed)
        if emitted:
            self._metrics.emitted.inc(emitted)
            # A batch is in the order of consumption: its first message is the oldest.
            oldest_s = batch[0].message.taken_s
            self._metrics.age.observe(max(0.0, now_s - oldest_s))
            if published_s < inf:
                self._metrics.publish_to_page.observe(max(0.0, now_s - published_s))

    def _ask_rooms(self, rooms: Sequence[Room]) -> None:
        tracked = self._tracked()
        for room in rooms if tracked else ():
            if room.user in tracked:
                for window in [each for each in room.windows if each.is_live]:
                    self.ask_for_proof(window)

    def emit_ephemeral(self, messages: Sequence[Message]) -> None:
        """
        Write messages that no inbox holds to the windows whose gate is open.

        Each carries the position that its window has already, so it changes no recovery. A
        window that reads too slowly for it does not receive it.
        """
        emitted = 0
        for message in messages:
            room = self._rooms.get(message.user)
            if room is not None and not message.is_expired(self._clock.read()):
                windows = room.individual
                emitted += self._write_past(room, message, windows, room.late)[0]
        if emitted:
            self._metrics.emitted.inc(emitted)

    def _write_past(
        self,
        room: Room,
        message: Message,
        individual: Sequence[Window],
        late: Sequence[int],
    ) -> tuple[int, Sequence[Window]]:
        """
        Write a message that moves no offset to the group and to some individual windows.

        Returns:
            How many windows it was written to, and those that read too slowly for it.

        """
        group, written, full = room.group, 0, list[Window]()
        if group.windows:
            part = _encode_at(message, group.windows[0], late)
            full += group.write(part.frames, outbound_bytes=self._outbound_bytes)
            written = len(group.windows) - len(full)
            group.advance(group.offset, written=1)
        for window in individual:
            if window.session.send_encoded(_encode_at(message, window, late)):
                written += 1
            else:
                full.append(window)
        return written, full

    def _write_due(self, room: Room) -> None:
        """Write the messages that were held back long enough."""
        room.timer = None
        held = room.held
        if held is None:
            return
        try:
            for stored in held.start_writing(self._timers().time()):
                self._write_held(room, held, stored)
            self._ask_rooms([room])
        finally:  # what was not written because of an error is due once more
            self._set_timer(room)

    def _write_held(self, room: Room, held: HeldValues, stored: Stored) -> None:
        message, now_s = stored.message, self._clock.wall_s()
        if message.is_expired(self._clock.read()):
            self._note_expired([stored], EncodedMessages((), b""), now_s)
            held.finish_writing(stored)
            return
        lacking = [each for each in room.individual if stored in room.lacking(each)]
        late = [offset for offset in room.late if offset != stored.offset]
        written, full = self._write_past(room, message, lacking, late)
        for window in full:
            self._fall_behind(room, window)
        held.finish_writing(stored)
        self._metrics.emitted.inc(written)
        self._note_written([stored], [written], now_s)

    def _set_timer(self, room: Room) -> None:
        """Call `_write_due` when the next message that is held back is due."""
        due_s = inf if room.held is None else room.held.next_due_s
        if room.timer is not None:
            if room.timer.when() <= due_s:
                return
            room.timer.cancel()
            room.timer = None
        if due_s < inf and room.user in self._rooms:
            room.timer = self._timers().call_at(due_s, partial(self._write_due, room))

    def _hold_back(
        self, room: Room, held: HeldValues, messages: Sequence[Stored]
    ) -> Sequence[Stored]:
        """Return the messages to write now; a timer writes the others."""
        now_s, held_before = self._timers().time(), len(held)
        taken = held.take(messages, now_s=now_s, above=room.replayed)
        replaced = held_before + len(messages) - len(taken) - len(held)
        self._metrics.throttled.inc(replaced)
        if held.is_idle(now_s):
            room.held = None
        self._set_timer(room)
        return taken

    def _emit_to_room(
        self, room: Room, messages: Sequence[Stored], now_s: float
    ) -> int:
        """Return how many messages were written, counted once for each window."""
        first, last = messages[0].offset, messages[-1].offset
        room.fed_offset = last
        group, individual = room.group, room.individual
        if not (group.windows or individual):
            room.drop_held()
            return 0
        epoch = (group.windows or individual)[0].epoch
        # A gap inside the batch: windows must have received all of it already, or read
        # the inbox.
        before = first - 1 if last - first + 1 == len(messages) else last
        late: Sequence[int] = ()
        if room.held is not None:
            messages = self._hold_back(room, room.held, messages)
            late = room.late
        encoded = encode_messages(messages, epoch, self._read_clock, late)
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
        now = self._clock.read()
        held = [one for one in room.lacking(window) if not one.message.is_expired(now)]
        room.close_gate(window)
        late: list[Stored] = []
        if held:
            # Each with the offset up to which the window has everything when it has it.
            uptos = [*(one.offset - 1 for one in held[1:]), window.offset]
            late = [
                Stored(one.message, upto) for one, upto in zip(held, uptos, strict=True)
            ]
            window.advance(held[0].offset - 1)
        self._metrics.fell_behind.inc()
        self._catch_up(window, late)

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


def _encode_at(
    message: Message, window: Window, late: Sequence[int]
) -> EncodedMessages:
    return encode_past(message, epoch=window.epoch, at=window.offset, late=late)


def _windows_per_message(
    messages: Sequence[Stored], written: Sequence[_Written]
) -> Sequence[int]:
    """Return how many windows received each message; a part holds the last messages."""
    windows = [0] * len(messages)
    for part, count in written:
        for index in range(len(messages) - len(part.packets), len(messages)):
            windows[index] += count
    return windows
