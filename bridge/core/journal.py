"""
A bounded record in memory of recent events of each message, for `bridge trace`.

The journal is written for every message, so it takes whole batches and stores one column
per fact instead of one object per message, at about 0.1 microseconds a message. It is
read only when an operator asks. It holds no message data. When it is full, the oldest
entries are dropped, and `begins_s` is the time since when it is complete.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeVar

from bridge.core.message import Message, Stored
from bridge.enums import PresenceChange, Stage

T = TypeVar("T")

# Entries in each of the four records: stored, written, delivered and other.
_ENTRIES_MAX: Final = 50_000
# Users whose last connect time is remembered.
_USERS_MAX: Final = 100_000


@dataclass(slots=True)
class JournalEntry:
    """
    One event in the life of a message, or of a range of messages.

    Treat it as frozen. It is not, because thousands are created per second.

    Attributes:
        at_s: Unix time.
        stage: The kind of event.
        user: The user whose message it is.
        message_id: The producer's id, if it is known.
        offset: The offset in the inbox, if the message has one.
        after: If the entry is about a range of messages: those above this offset, up to
            and including `offset`.
        windows: How many windows the message was written to.
        text: Details, worded as the end of a sentence.
        bridge: The bridge that recorded the entry.

    """

    at_s: float
    stage: Stage
    user: str
    message_id: str | None = None
    offset: int | None = None
    after: int | None = None
    windows: int | None = None
    text: str = ""
    bridge: str = ""


_Keyed = tuple[float, int, tuple[str, str, str]]


class _Columns:
    """Entries in order, one column per fact; the columns in use have the same length."""

    __slots__ = ("at_s", "ids", "offsets", "published_s", "texts", "users", "windows")

    def __init__(self, bound: int) -> None:
        self.at_s: deque[float] = deque(maxlen=bound)
        self.users: deque[str] = deque(maxlen=bound)
        self.ids: deque[str | None] = deque(maxlen=bound)
        self.offsets: deque[int | None] = deque(maxlen=bound)
        self.published_s: deque[float | None] = deque(maxlen=bound)
        self.windows: deque[int] = deque(maxlen=bound)
        self.texts: deque[str] = deque(maxlen=bound)

    @property
    def begins_s(self) -> float | None:
        """Time of the oldest entry; ``None`` if no entry was dropped yet."""
        return self.at_s[0] if len(self.at_s) == self.at_s.maxlen else None


class Journal:
    """Recent events of messages. Not thread-safe: used in the event loop only."""

    def __init__(
        self,
        *,
        began_s: float = 0.0,
        messages: int = _ENTRIES_MAX,
        max_users: int = _USERS_MAX,
        bridge: str = "",
    ) -> None:
        """
        Create an empty journal.

        Args:
            began_s: Unix time at which recording starts.
            messages: How many entries of each record are kept.
            max_users: How many users' last connect times are kept.
            bridge: The name of this bridge, for the entries.

        """
        self._bridge = bridge
        self._max_users = max_users
        self._began_s = began_s
        self._stored = _Columns(messages)
        self._written = _Columns(messages)
        self._delivered = _Columns(messages)
        self._others: deque[JournalEntry] = deque(maxlen=messages)
        # Stored messages with a key: time, offset, and user, event and key.
        self._keyed: deque[_Keyed] = deque(maxlen=messages)
        self._connects: dict[str, float] = {}
        # Changes of presence, in a record of their own: a storm of reconnects must not
        # displace retries and dead letters.
        self._presence: deque[tuple[float, str, PresenceChange]] = deque(
            maxlen=messages
        )

    # --- writing: on the hot path

    def stored(
        self,
        messages: Sequence[Message],
        offsets: Sequence[int | None],
        *,
        at_s: float,
    ) -> None:
        """Record an append; the offset of a duplicate is ``None``."""
        columns = self._stored
        if len(messages) == 1:  # the usual case at low rates, and cheaper without lists
            (message,) = messages
            columns.at_s.append(at_s)
            columns.users.append(message.user)
            columns.ids.append(message.id)
            columns.offsets.append(offsets[0])
            columns.published_s.append(message.published_s)
            return
        columns.at_s.extend([at_s] * len(messages))
        columns.users.extend([message.user for message in messages])
        columns.ids.extend([message.id for message in messages])
        columns.offsets.extend(offsets)
        columns.published_s.extend([message.published_s for message in messages])

    def keyed(
        self,
        messages: Sequence[Message],
        offsets: Sequence[int | None],
        *,
        at_s: float,
    ) -> None:
        """Record which of the stored `messages` have a key."""
        for message, offset in zip(messages, offsets, strict=True):
            options = message.options
            if offset is not None and options is not None and options.key is not None:
                place = (message.user, message.event, options.key)
                self._keyed.append((at_s, offset, place))

    def written(
        self, batch: Sequence[Stored], windows: Sequence[int], *, at_s: float
    ) -> None:
        """Record how many windows each message of `batch`, all of one user, was written to."""
        columns = self._written
        if len(batch) == 1:
            (stored,) = batch
            columns.at_s.append(at_s)
            columns.users.append(stored.message.user)
            columns.offsets.append(stored.offset)
            columns.windows.append(windows[0])
            return
        columns.at_s.extend([at_s] * len(batch))
        columns.users.extend([batch[0].message.user] * len(batch))
        columns.offsets.extend([stored.offset for stored in batch])
        columns.windows.extend(windows)

    def delivered(self, user: str, offset: int, *, at_s: float, text: str) -> None:
        """Record that a window has received everything up to `offset`."""
        columns = self._delivered
        columns.at_s.append(at_s)
        columns.users.append(user)
        columns.offsets.append(offset)
        columns.texts.append(text)

    def note(self, entry: JournalEntry) -> None:
        """Record any other event."""
        self._others.append(entry)

    def connected(self, user: str, *, at_s: float) -> None:
        """Record that a window of `user` was admitted."""
        connects = self._connects
        connects.pop(user, None)  # reinsert at the end: the dict is ordered by time
        connects[user] = at_s
        if len(connects) > self._max_users:
            del connects[next(iter(connects))]

    def presence(self, user: str, change: PresenceChange, *, at_s: float) -> None:
        """Record a change in the presence of `user`."""
        self._presence.append((at_s, user, change))

    # --- reading

    @property
    def begins_s(self) -> float:
        """Unix time since when the journal is complete."""
        is_full = len(self._others) == self._others.maxlen
        begins = (
            self._began_s,
            self._stored.begins_s,
            self._written.begins_s,
            self._delivered.begins_s,
            self._others[0].at_s if is_full else None,
        )
        return max(each for each in begins if each is not None)

    def last_connect_s(self, user: str) -> float | None:
        """Return when a window of `user` was last admitted; ``None`` if never."""
        return self._connects.get(user)

    def presence_of(
        self, user: str, *, limit: int
    ) -> list[tuple[float, PresenceChange]]:
        """Return the last `limit` changes of `user` with their Unix times, newest first."""
        changes = (
            (at_s, what) for at_s, who, what in reversed(self._presence) if who == user
        )
        return list(islice(changes, limit))

    def users_of(self, message_id: str) -> set[str]:
        """Return the users with entries about a message with this id."""
        all_users = list(self._stored.users)
        users = {all_users[index] for index in _indexes(self._stored.ids, message_id)}
        return users | {
            each.user for each in self._others if each.message_id == message_id
        }

    def of(
        self, user: str, message_id: str, *, offsets: Sequence[int] = ()
    ) -> list[JournalEntry]:
        """
        Return the entries about a message of `user`, in order of time.

        Args:
            user: The user whose message it is.
            message_id: The producer's id.
            offsets: Offsets of messages with that id in the inbox; the journal adds
                those that it recorded itself.

        """
        found = [*self._find_stored(user, message_id)]
        all_offsets = {*offsets, *(each.offset for each in found if each.offset)}
        found += self._find_written(user, all_offsets)
        found += self._find_delivered(user, all_offsets)
        found += self._find_replaced(user, all_offsets)
        found += (
            each
            for each in self._others
            if each.user == user
            and (each.message_id == message_id or _covers(each, all_offsets))
        )
        found.sort(key=lambda each: each.at_s)
        return [replace(each, bridge=self._bridge) for each in found]

    def _find_stored(self, user: str, message_id: str) -> Iterator[JournalEntry]:
        columns = self._stored
        users = list(columns.users)
        for index in _indexes(columns.ids, message_id):
            if users[index] == user:
                published_s = columns.published_s[index]
                if published_s is not None:
                    text = "by its timestamp"
                    yield JournalEntry(
                        published_s, Stage.PUBLISHED, user, message_id, text=text
                    )
                offset = columns.offsets[index]
                stage = Stage.DUPLICATE if offset is None else Stage.STORED
                yield JournalEntry(columns.at_s[index], stage, user, message_id, offset)

    def _find_replaced(self, user: str, offsets: set[int]) -> Iterator[JournalEntry]:
        """Yield for each message with a key the first newer one, which replaced it."""
        keyed = [each for each in self._keyed if each[2][0] == user]
        for _, offset, place in keyed:
            if offset not in offsets:
                continue
            for at_s, newer, other in keyed:
                if other == place and newer > offset:
                    yield JournalEntry(at_s, Stage.REPLACED, user, offset=newer)
                    break

    def _find_written(self, user: str, offsets: set[int]) -> Iterator[JournalEntry]:
        columns = self._written
        for offset in offsets:
            for index in _indexes(columns.offsets, offset):
                if columns.users[index] == user:
                    at_s, windows = columns.at_s[index], columns.windows[index]
                    yield JournalEntry(
                        at_s, Stage.WRITTEN, user, offset=offset, windows=windows
                    )

    def _find_delivered(self, user: str, offsets: set[int]) -> Iterator[JournalEntry]:
        columns = self._delivered
        upto = list(columns.offsets)
        for offset in offsets:
            for index in _indexes(columns.users, user):
                mark = upto[index]
                if mark is not None and mark >= offset:
                    at_s, text = columns.at_s[index], columns.texts[index]
                    yield JournalEntry(
                        at_s, Stage.DELIVERED, user, offset=offset, text=text
                    )
                    break  # later marks cover the message as well


def _indexes(column: Iterable[T], wanted: T) -> Iterator[int]:
    """Yield the indexes of `wanted` in `column`, searching in C."""
    values = list(column)
    start = 0
    while True:
        try:
            start = values.index(wanted, start)
        except ValueError:
            return
        yield start
        start += 1


def _covers(entry: JournalEntry, offsets: set[int]) -> bool:
    """Return whether a range entry is about one of `offsets`."""
    after, upto = entry.after, entry.offset
    if after is None or upto is None:
        return False
    return any(after < offset <= upto for offset in offsets)
