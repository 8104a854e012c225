"""
Rooms: which windows a user has open, and how a message gets into all of them.

A message is one frame that is written to every transport in a room: no task, no queue, no
copy for a window.

A room is fed from the inbox's live feed and from nothing else, so its windows see what
the inbox holds, in its order.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from math import inf
from time import time

from bridge.core.frames import EncodedMessages, encode_messages
from bridge.core.journal import Journal, JournalEntry
from bridge.core.message import Stored
from bridge.enums import Stage
from bridge.metrics import Metrics
from bridge.sockets.room import Room
from bridge.sockets.window import Window
from bridge.tracing import Tracing

# What was written, and to how many windows.
_Written = tuple[EncodedMessages, int]


class Rooms:
    """
    All rooms of this bridge.

    `mark_delivered` is called with a user and an offset when a message has been written
    to at least one window of the user; `catch_up` with a window whose gate was shut,
    because more waits for it than may, or because a part of the feed was lost: it has to
    be read from the inbox.

    Attributes:
        outbound_bytes: How much may wait for one page.

    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        mark_delivered: Callable[[str, int], None],
        catch_up: Callable[[Window], None],
        journal: Journal | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._metrics = metrics
        self._mark_delivered = mark_delivered
        self._catch_up = catch_up
        self._tracing = tracing
        self.journal = journal or Journal()
        self._rooms: dict[str, Room] = {}
        self._count = 0
        self.outbound_bytes = 0

    # --- who is where

    def __len__(self) -> int:
        """Count the windows."""
        return self._count

    def __iter__(self) -> Iterator[Window]:
        """Iterate over the windows as they are now."""
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
        self._count += 1
        self.journal.connected(window.user, at_s=window.connected_s)

    def open_gate(self, window: Window) -> bool:
        """
        Let `window` get what is new from now on, if its replay has caught up.

        Returns:
            False if the feed has brought something meanwhile that the window has not
            had: it passed a closed gate, and has to be read from the inbox.

        """
        return self._rooms[window.user].open_gate(window)

    def leave(self, window: Window) -> bool:
        """Take `window` out of its room; true if the room is empty and gone."""
        room = self._rooms.get(window.user)
        if room is None or window not in room.windows:
            return False
        room.windows.remove(window)
        self._count -= 1
        room.shut_gate(window)
        return self._drop_if_empty(room)

    def _drop_if_empty(self, room: Room) -> bool:
        if not room.is_empty:
            return False
        del self._rooms[room.user]
        return True

    def renew(self, user: str) -> None:
        """Know that the offsets of `user` begin anew, those of new windows as well."""
        room = self._rooms.get(user)
        if room is not None:
            room.fed = 0

    # --- emit

    def feed(self, batch: Sequence[Stored]) -> None:
        """Write new messages to every open window of their users, in order."""
        now_s = time()
        rooms = self._rooms
        fed: list[Room] = []
        published_s = inf  # as far as anybody said so
        for stored in batch:
            message = stored.message
            room = rooms.get(message.user)
            if room is None:
                continue
            if room.news is None:
                room.news = [stored]
                fed.append(room)
                if message.published_s is not None:
                    published_s = min(published_s, message.published_s)
            else:
                room.news.append(stored)
        emitted = 0
        try:
            for room in fed:
                emitted += self._feed_room(room, room.news or (), now_s)
        finally:  # what a fault leaves out is a hole, and seen at the next message
            for room in fed:
                room.news = None
        if emitted:
            self._metrics.emitted.inc(emitted)
            # A batch is in the order in which it was taken.
            oldest_s = batch[0].message.taken_s
            self._metrics.age.observe(max(0.0, now_s - oldest_s))
            if published_s < inf:
                self._metrics.publish_to_page.observe(max(0.0, now_s - published_s))

    def _feed_room(self, room: Room, news: Sequence[Stored], now_s: float) -> int:
        """Write `news` to the open windows of `room`; returns how many were written."""
        first, last = news[0].offset, news[-1].offset
        room.fed = last
        if not (room.level or room.others):
            return 0
        epoch = (room.level or room.others)[0].epoch
        everything = encode_messages(news, epoch=epoch, now_s=now_s)
        # A hole: some of the feed never arrived. The inbox has it.
        before = first - 1 if last - first + 1 == len(news) else last
        if room.offset == before and room.level and not room.others:  # as nearly always
            windows = self._write_level(room, everything, last)
            if len(everything.packets) < len(news):
                news = self._note_expired(news, everything, now_s)
            self._note(news, [windows] * len(news), now_s)
            return windows * len(news)
        written: list[_Written] = []
        if room.offset < before:
            for window in tuple(room.level):
                self._shut_gate(room, window)
        if room.level and room.offset < last:  # else it has read so far already
            at = room.offset
            part = everything if at == before else everything.after(at)
            written.append((part, self._write_level(room, part, last)))
        self._write_others(room, everything, (before, last), written)
        if len(everything.packets) < len(news):
            news = self._note_expired(news, everything, now_s)
        self._note(news, _windows_of_each(news, written), now_s)
        return sum([len(part.packets) * windows for part, windows in written])

    def _write_level(self, room: Room, part: EncodedMessages, last: int) -> int:
        """Write to the windows that have had the same; returns how many took it."""
        packets = part.packets
        if packets:
            for window in room.write(part.frames, at_most=self.outbound_bytes):
                self._shut_gate(room, window)
            if room.marks_by_writing:
                self._mark_delivered(room.user, packets[-1][0])
        room.advance(last, written=len(packets))
        return len(room.level)

    def _write_others(
        self,
        room: Room,
        everything: EncodedMessages,
        about: tuple[int, int],
        written: list[_Written],
    ) -> None:
        """Write to the windows that are alone, noting what."""
        before, last = about
        is_delivered = False
        for window in tuple(room.others):
            at = window.offset
            if at >= last:
                continue
            part = everything if at <= before else everything.after(at)
            if at < before or (part.packets and not window.carrier.write_burst(part)):
                self._shut_gate(room, window)
                continue
            window.offset = last
            written.append((part, 1))
            is_delivered = is_delivered or window.delivers_by_writing
        if is_delivered and everything.packets:
            self._mark_delivered(room.user, everything.packets[-1][0])
        room.lift_others()

    def _note(
        self, news: Sequence[Stored], windows: Sequence[int], now_s: float
    ) -> None:
        """Let the journal know to how many windows each of `news` was written."""
        if any(windows):
            self.journal.written(news, windows, at_s=now_s)
            if self._tracing is not None:
                self._tracing.written(news, windows, now_s=now_s)

    def _note_expired(
        self, news: Sequence[Stored], everything: EncodedMessages, now_s: float
    ) -> Sequence[Stored]:
        """Count and note those of `news` that are not in `everything`; return the others."""
        self._metrics.left_out.inc(len(news) - len(everything.packets))
        offsets = {offset for offset, _ in everything.packets}
        for stored in news:
            if stored.offset not in offsets:
                self.journal.note(_expired(stored, now_s))
        return [stored for stored in news if stored.offset in offsets]

    def _shut_gate(self, room: Room, window: Window) -> None:
        """Send a window back to the inbox, from where it is read at its own pace."""
        room.shut_gate(window)
        self._metrics.fell_behind.inc()
        self._catch_up(window)


def _windows_of_each(
    news: Sequence[Stored], written: Sequence[_Written]
) -> Sequence[int]:
    """Return to how many windows each of `news` went; parts are its last ones."""
    windows = [0] * len(news)
    for part, number in written:
        for place in range(len(news) - len(part.packets), len(news)):
            windows[place] += number
    return windows


def _expired(stored: Stored, now_s: float) -> JournalEntry:
    message = stored.message
    text = "before it could be written"
    return JournalEntry(
        now_s, Stage.EXPIRED, message.user, message.id, stored.offset, text=text
    )
