"""
What happened lately to which message, in memory and within bounds: for `bridge trace`.

It is written on the path of every message, so it takes whole batches and keeps a column
for each fact, not an object for each message: some 0.1 microseconds a message. It is
read only when an operator asks. It holds no data of messages; when it is full the oldest
go, and `begins_s` says how far back it knows everything.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from bridge.core.message import Message, Stored
from bridge.enums import Stage

T = TypeVar("T")

# Messages in each of the three records: of storing, of writing, of all that is rare.
JOURNAL_MESSAGES: Final = 50_000
# Users of whom it is known when they connected last.
_CONNECTS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Happening:
    """
    Something that happened to one message.

    Attributes:
        at_s: Unix time.
        stage: What it was.
        user: Whose message it is.
        message_id: The producer's id, where that is known.
        offset: Its place in the inbox, where it has one.
        after: If it happened to several at once: to those behind this, up to `offset`.
        windows: How many windows it was written to.
        text: What else there is to say, as the end of a sentence.
        bridge: Whose journal says so.

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


class _Columns:
    """Messages in order, a column for each fact; all are of one length."""

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
        """Since when it is whole; ``None`` if nothing had to go yet."""
        return self.at_s[0] if len(self.at_s) == self.at_s.maxlen else None


class Journal:
    """What happened lately. For one thread: the event loop's."""

    def __init__(
        self,
        *,
        began_s: float = 0.0,
        messages: int = JOURNAL_MESSAGES,
        bridge: str = "",
    ) -> None:
        """
        Begin an empty journal.

        Args:
            began_s: Unix time; of what was before, nothing is known.
            messages: How many of each kind are remembered.
            bridge: Who remembers.

        """
        self._bridge = bridge
        self._began_s = began_s
        self._stored = _Columns(messages)
        self._written = _Columns(messages)
        self._delivered = _Columns(messages)
        self._rare: deque[Happening] = deque(maxlen=messages)
        self._connects: dict[str, float] = {}

    # --- writing, on the path of messages

    def stored(
        self,
        messages: Sequence[Message],
        offsets: Sequence[int | None],
        *,
        at_s: float,
    ) -> None:
        """Note what was appended; an offset is ``None`` for what was there already."""
        columns = self._stored
        if len(messages) == 1:  # as most are with little traffic; lists cost more
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

    def written(
        self, batch: Sequence[Stored], windows: Sequence[int], *, at_s: float
    ) -> None:
        """Note to how many windows each of `batch` was written as it was stored."""
        columns = self._written
        if len(batch) == 1:
            (stored,) = batch
            columns.at_s.append(at_s)
            columns.users.append(stored.message.user)
            columns.offsets.append(stored.offset)
            columns.windows.append(windows[0])
            return
        columns.at_s.extend([at_s] * len(batch))
        columns.users.extend([stored.message.user for stored in batch])
        columns.offsets.extend([stored.offset for stored in batch])
        columns.windows.extend(windows)

    def delivered(self, user: str, offset: int, *, at_s: float, text: str) -> None:
        """Note that a page said, or showed, that it has everything up to `offset`."""
        columns = self._delivered
        columns.at_s.append(at_s)
        columns.users.append(user)
        columns.offsets.append(offset)
        columns.texts.append(text)

    def note(self, happening: Happening) -> None:
        """Note something that is rare, or that costs more than this anyway."""
        self._rare.append(happening)

    def connected(self, user: str, *, at_s: float) -> None:
        """Note that a window of `user` was let in."""
        connects = self._connects
        connects.pop(user, None)  # to the end: the oldest stand first
        connects[user] = at_s
        if len(connects) > _CONNECTS_MAX:
            del connects[next(iter(connects))]

    # --- reading

    @property
    def begins_s(self) -> float:
        """Since when everything is known."""
        is_full = len(self._rare) == self._rare.maxlen
        begins = (
            self._began_s,
            self._stored.begins_s,
            self._written.begins_s,
            self._delivered.begins_s,
            self._rare[0].at_s if is_full else None,
        )
        return max(each for each in begins if each is not None)

    def last_connect_s(self, user: str) -> float | None:
        """When a window of `user` was let in last; ``None`` if not since the start."""
        return self._connects.get(user)

    def users_of(self, message_id: str) -> set[str]:
        """Whose messages with this id are in here."""
        all_users = list(self._stored.users)
        users = {all_users[place] for place in _places(self._stored.ids, message_id)}
        return users | {
            each.user for each in self._rare if each.message_id == message_id
        }

    def of(
        self, user: str, message_id: str, *, offsets: Sequence[int] = ()
    ) -> list[Happening]:
        """
        Return what happened to a message of `user`, in order.

        Args:
            user: Whose.
            message_id: The producer's id.
            offsets: Where messages with that id stand in the inbox; those that are in
                the journal's own record of storing are added.

        """
        found = [*self._storing(user, message_id)]
        places = {*offsets, *(each.offset for each in found if each.offset)}
        found += self._writing(user, places)
        found += self._delivering(user, places)
        found += (
            each
            for each in self._rare
            if each.user == user
            and (each.message_id == message_id or _covers(each, places))
        )
        found.sort(key=lambda each: each.at_s)
        return [replace(each, bridge=self._bridge) for each in found]

    def _storing(self, user: str, message_id: str) -> Iterator[Happening]:
        columns = self._stored
        users = list(columns.users)
        for place in _places(columns.ids, message_id):
            if users[place] == user:
                published_s = columns.published_s[place]
                if published_s is not None:
                    text = "by its timestamp"
                    yield Happening(
                        published_s, Stage.PUBLISHED, user, message_id, text=text
                    )
                offset = columns.offsets[place]
                stage = Stage.DUPLICATE if offset is None else Stage.STORED
                yield Happening(columns.at_s[place], stage, user, message_id, offset)

    def _writing(self, user: str, offsets: set[int]) -> Iterator[Happening]:
        columns = self._written
        for offset in offsets:
            for place in _places(columns.offsets, offset):
                if columns.users[place] == user:
                    yield Happening(
                        columns.at_s[place],
                        Stage.WRITTEN,
                        user,
                        offset=offset,
                        windows=columns.windows[place],
                    )

    def _delivering(self, user: str, offsets: set[int]) -> Iterator[Happening]:
        columns = self._delivered
        upto = list(columns.offsets)
        for offset in offsets:
            for place in _places(columns.users, user):
                mark = upto[place]
                if mark is not None and mark >= offset:
                    yield Happening(
                        columns.at_s[place],
                        Stage.DELIVERED,
                        user,
                        offset=offset,
                        text=columns.texts[place],
                    )
                    break  # later marks say the same again


def _places(column: Iterable[T], wanted: T) -> Iterator[int]:
    """Yield where `wanted` stands in `column`; quick where it does not."""
    values = list(column)
    start = 0
    while True:
        try:
            start = values.index(wanted, start)
        except ValueError:
            return
        yield start
        start += 1


def _covers(happening: Happening, offsets: set[int]) -> bool:
    """Whether something that happened to several happened to one of `offsets`."""
    after, upto = happening.after, happening.offset
    if after is None or upto is None:
        return False
    return any(after < offset <= upto for offset in offsets)
