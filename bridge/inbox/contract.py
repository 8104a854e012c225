"""
What every store of inboxes offers, as small protocols for the parts that use it.

An inbox is one user's log of messages. A store keeps the inboxes of all users: it numbers
the messages of each user from 1 without gaps, publishes them to its subscriber, and
deletes them by the rules of `Retention`. One suite in tests/contract runs against all
three stores: memory, sqlite and redis.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bridge.core.admin_views import (
    InboxSummary,
    KeptMessage,
    SearchResult,
    WaitingEvents,
)
from bridge.core.identity import Identity
from bridge.core.message import Message, Stored
from bridge.core.receipts import Receipt, WorkerEvent
from bridge.core.replay import InboxPage, InboxState
from bridge.core.revocation import Revocation

# Receives the messages that were stored for followed users, those of each user in order.
StoredListener = Callable[[Sequence[Stored]], None]
# Receives ephemeral messages for followed users, which are stored nowhere.
AnnouncedListener = Callable[[Sequence[Message]], None]
# Receives users whose epoch has changed: their positions no longer mean anything, and
# some of their messages may be gone.
EpochListener = Callable[[Sequence[str]], None]
# Receives each revocation once: windows that use its tokens must be closed.
RevokedListener = Callable[[Revocation], None]

# In place of the offset of a message that was not stored, because it would have retained one
# key more than `Retention.max_retained`.
REFUSED: Final = -1
# The most that the bodies of events that are read together have.
EVENT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Retention:
    """
    How much a store keeps.

    Attributes:
        max_messages: Messages of each user.
        max_age_s: Age at which a message is deleted.
        dedupe_s: How long the id of a message is remembered.
        max_retained: Retained keys of each user.

    """

    max_messages: int
    max_age_s: float
    dedupe_s: float
    max_retained: int = 100


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes that a store uses, and bytes that are still free on its disk or server."""

    used_bytes: int
    free_bytes: int


class InboxWriter(Protocol):
    """The part of a store that the pipeline uses."""

    async def append(self, messages: Sequence[Message]) -> Sequence[int | None]:
        """
        Store `messages` in order, all or none; durable when the call returns.

        Returns:
            The offset of each message; ``None`` for a duplicate: a message whose id its
            user has received within the dedupe window; `REFUSED` for a retained key too
            many.

        Raises:
            StoreUnavailableError: If the store cannot be written now.

        Cancellation: the messages may or may not have been stored.

        """

    async def announce(self, messages: Sequence[Message]) -> None:
        """
        Publish ephemeral messages to the windows of their users, without storing them.

        Never raises. While the store is away, they are lost.
        """

    async def note_trials(self, keys: Sequence[bytes]) -> Sequence[int]:
        """
        Record a trial of each key in one write; return the number of each trial, from 1.

        The records survive the process, so a message that crashes it is recognized.

        Raises:
            StoreUnavailableError: If the trials cannot be recorded now.

        """

    def forget_trial(self, key: bytes) -> None:
        """Delete the record in the background, without waiting for it."""

    async def add_event(self, event: WorkerEvent) -> None:
        """
        Add an event to the outbox (`EventOutbox`); durable when the call returns.

        One with the same id may be there already.

        Raises:
            StoreUnavailableError: If the store cannot be written now.

        """


class InboxReader(Protocol):
    """The part of a store that browser windows use."""

    def subscribe(
        self,
        on_stored: StoredListener,
        on_epoch_changed: EpochListener | None = None,
        on_announced: AnnouncedListener | None = None,
        on_revoked: RevokedListener | None = None,
    ) -> None:
        """
        Call `on_stored` after messages of followed users were stored.

        There is one subscriber: a second call replaces the first. All functions are
        called in the event loop and must not block. `on_epoch_changed` is called before
        the first message of the new epoch, `on_announced` with ephemeral messages,
        `on_revoked` after the revocation was stored and before any message that was stored
        after it.
        """

    def is_revoked(self, identity: Identity) -> bool:
        """
        Return whether a revocation in force covers the token of `identity`.

        Known are all that were stored before a call of `state` for its user began that
        has returned, and all that `on_revoked` has received. So a window is checked by
        this, after `state` and without an `await`, in the same step in which it joins its
        room: an earlier revocation is found here, and a later one finds the window.
        """

    async def follow(self, user: str) -> None:
        """
        Include `user` in the feed: messages stored after this returns are published.

        Raises:
            StoreUnavailableError: If the store does not confirm it.

        """

    def unfollow(self, user: str) -> None:
        """Undo `follow`. A later `follow` takes effect even if this is still running."""

    async def state(self, user: str) -> InboxState:
        """
        Return the first, last and delivered offsets of the inbox of `user`.

        Raises:
            StoreUnavailableError: If the store cannot be read now.

        """

    async def read(
        self, user: str, *, after: int, max_messages: int, max_bytes: int
    ) -> InboxPage:
        """
        Read messages with offsets above `after`, oldest first.

        The page holds at least one message if there is any, however large it is.

        Raises:
            StoreUnavailableError: If the store cannot be read now.

        """

    async def read_retained(
        self, user: str, *, after: int, upto: int, max_bytes: int
    ) -> Sequence[Stored]:
        """
        Read the newest message of each retained key, if its offset is in (`after`, `upto`].

        They are in the order of their offsets, without those past their deadline, and at
        least one if there is any. Some are no longer in the inbox otherwise. To continue,
        pass the offset of the last one as `after`.

        Raises:
            StoreUnavailableError: If the store cannot be read now.

        """

    async def count_expired(self, user: str, *, after: int) -> int:
        """
        Count the messages above the offset `after` that are past their deadline.

        Raises:
            StoreUnavailableError: If the store cannot be read now.

        """

    @property
    def tracked(self) -> Collection[str]:
        """
        Users who have messages whose outcome a worker waits for, as far as is known.

        Their windows are asked for a sign of life at once, so the mark moves soon.
        """

    def mark_delivered(self, user: str, offset: int) -> None:
        """
        Move the delivered mark of `user` forward to `offset`; a lower offset is ignored.

        The mark takes effect at once and is written in the background, at once for users in
        `tracked`. A crash can revert about a second of marks.
        """


class RevocationStore(Protocol):
    """The part of a store that revokes tokens."""

    async def revoke(self, revocation: Revocation) -> None:
        """
        Store a revocation, durably, and pass it to the subscribers of all bridges.

        Raises:
            StoreUnavailableError: If that is not confirmed now. The call may be repeated.
            RevocationsFullError: If too many are in force; nothing is stored.

        Cancellation: the revocation may or may not have been stored.

        """

    def revocations(self, user: str) -> Sequence[Revocation]:
        """Return the revocations of `user` that are in force, as far as is known."""

    def all_revocations(self) -> Sequence[Revocation]:
        """Return the revocations of all users that are in force, as far as is known."""


class EventOutbox(Protocol):
    """
    The part of a store that keeps what is to be published on the exchange of events.

    Every coroutine raises StoreUnavailableError if the store cannot be used now.
    """

    def on_events(self, wake: Callable[[], None]) -> None:
        """Call `wake` in the event loop when there may be an event to publish."""

    async def pending_events(
        self, limit: int, *, max_bytes: int = EVENT_BYTES
    ) -> Sequence[WorkerEvent]:
        """
        Return up to `limit` events that are not confirmed, oldest first for each user.

        Their bodies have at most `max_bytes`, but there is at least one if there is any.

        First it decides what became due by the passing of time. So it must be called at
        least about once a second, also while nothing can be published.

        If several bridges share the store, each event is returned to one of them, and to
        another one only if that one does not ask again for some seconds.
        """

    async def confirm_events(self, events: Sequence[WorkerEvent]) -> None:
        """Delete events that were published; durable when the call returns."""

    async def drop_presence_events(self, limit: int) -> int:
        """
        Delete the oldest events about presence to make room; return how many there were.

        They are about `limit`, unless there are less. Other events are never deleted.
        """

    async def events_depth(self) -> tuple[int, float | None]:
        """Return the number of events, and the age of the oldest in seconds."""


class PresenceStore(Protocol):
    """The part of a store that decides which users are online."""

    async def note_presence(
        self, windows: Mapping[str, int], *, debounce_s: float
    ) -> Callable[[str], bool] | None:
        """
        Note how many windows some users have on this bridge, and decide who is online.

        The first windows of a user on any bridge add the event `user.online` to the outbox;
        when the user has had no windows for `debounce_s`, `user.offline` is added. Time
        decides when this is called, so it must be called at least once a second, also
        without users. Users with the windows of a bridge that ended leave by themselves.

        Returns:
            ``None`` if all was noted. Otherwise a function that says of which users with
            windows here they must be noted again, soon but not at once: the store is
            away, or has lost what it knew about this bridge.

        Never raises.
        """


class AdminQueries(Protocol):
    """
    Read-only queries for operators; they neither change an inbox nor delay the bridge.

    Every query raises StoreUnavailableError if the store cannot be read now.
    """

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Return up to `limit` users with this prefix, by name, from `after` on."""

    async def user(self, user: str) -> InboxSummary | None:
        """Return the inbox of `user`; ``None`` if the user never had a message."""

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """
        Return up to `limit` messages of `user`, newest first.

        Args:
            user: The user whose messages are listed.
            before: Exclude this offset and above; ``None`` starts at the newest.
            limit: The most messages to return.
            max_bytes: How many bytes of data to return with them, at least the data of
                one message; 0 returns no data.

        """

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """
        Find the messages with this id, of one user or of all users.

        A search through all users stops after a time limit and reports that it is
        incomplete.
        """

    async def open_receipts(self, user: str, message_id: str) -> Sequence[Receipt]:
        """Return the receipts of messages with this id whose outcome is not decided yet."""

    async def waiting_events(self, user: str, message_id: str) -> WaitingEvents:
        """
        Return the events about messages with this id that wait to be published.

        The search begins with the oldest event, stops after a time limit, and then reports
        that it is incomplete.
        """


class Inbox(
    InboxWriter, InboxReader, RevocationStore, EventOutbox, PresenceStore, Protocol
):
    """A store, with its lifecycle."""

    retention: Retention  # may be replaced while the store is open

    @property
    def description(self) -> str:
        """The store as settings name it, without secrets."""

    @property
    def problem(self) -> str | None:
        """Why the store cannot be written now; ``None`` if no problem is known."""

    @property
    def trimmed(self) -> int:
        """Messages that `append` has deleted in this process: their inboxes were full."""

    @property
    def admin(self) -> AdminQueries:
        """The queries for operators."""

    async def exists(self) -> bool:
        """
        Return whether the store exists already, without creating it.

        Raises:
            ConfigError: If the setting cannot be right.
            StoreUnavailableError: If the store cannot be used now.

        """

    async def open(self) -> None:
        """
        Open the store, creating it if it does not exist.

        Raises:
            ConfigError: If the setting is wrong.
            StoreUnavailableError: If the store cannot be opened now. The call may be
                repeated.

        """

    async def close(self) -> None:
        """Finish background writes and close the store, which may never have been open."""

    async def check(self) -> None:
        """
        Verify that the store can be written.

        Raises:
            StoreUnavailableError: If it cannot.

        """

    async def usage(self) -> DiskUsage | None:
        """
        Return how much space the store uses; ``None`` if it has no limit of its own.

        Raises:
            StoreUnavailableError: If that cannot be determined now.

        """

    async def sweep(self) -> None:
        """Delete messages and ids that are too old; called about once a minute."""
