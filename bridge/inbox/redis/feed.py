"""
The live feed of inboxes in Redis: one subscription for each user who has windows here.

One append stores all messages of a user and publishes them as one push, with the epoch and
the offset of the first one. All pushes of one read from the socket go to the subscriber in one
call. A lost connection leaves a gap in the feed. After the reconnect the feed hands over the
newest message of each followed user. If that is not the next offset, the room notices the
gap, and its windows read what they missed from the inbox; the feed itself fills no gaps.
"""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from bridge.core.message import Message, Stored
from bridge.core.revocation import parse_revocation
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import AnnouncedListener, EpochListener, StoredListener
from bridge.inbox.redis.encoding import (
    TAG_COUNT,
    Tags,
    pack_announcement,
    tag_of,
    unpack,
    unpack_publication,
)
from bridge.inbox.redis.protocol import Argument, RedisConnection
from bridge.inbox.redis.revocations import RedisRevocations
from bridge.inbox.redis.scripts.reading import NEWEST

# Channels or users in one command.
_PART: Final = 500
_MESSAGES: Final = frozenset({b"message", b"smessage"})
_SUBSCRIBED: Final = frozenset({b"subscribe", b"ssubscribe"})


class Subscription:
    """One followed user: the newest offset received, and whether Redis has confirmed."""

    __slots__ = ("channel", "confirmed", "newest", "tag", "user")

    def __init__(self, user: str, tag: int, channel: bytes) -> None:
        self.user = user
        self.tag = tag
        self.channel = channel
        self.newest = 0
        self.confirmed = asyncio.Event()


class Feed:
    """
    The followed users, and the messages published for them.

    Attributes:
        epochs: Of each tag; empty while it is unknown.

    """

    def __init__(
        self,
        store: str,
        prefixes: Sequence[str],
        revocations: RedisRevocations,
        *,
        is_cluster: bool,
        subscribe_s: float,
    ) -> None:
        """
        Create a feed that follows no user yet.

        Args:
            store: How errors name the store.
            prefixes: The channel prefix of each tag.
            revocations: Receives the revocations that are published.
            is_cluster: Whether channels belong to slots, as keys do.
            subscribe_s: How long to wait for the confirmation of a subscription.

        """
        self.epochs = [""] * TAG_COUNT
        self._store = store
        self._prefixes = prefixes
        self._revocations = revocations
        self._is_cluster = is_cluster
        self._subscribe_s = subscribe_s
        self._subscribe, self._unsubscribe, self._publish = (
            (b"SSUBSCRIBE", b"SUNSUBSCRIBE", b"SPUBLISH")
            if is_cluster
            else (b"SUBSCRIBE", b"UNSUBSCRIBE", b"PUBLISH")
        )
        self._followed: dict[bytes, Subscription] = {}
        self._on_stored: StoredListener | None = None
        self._on_epoch_changed: EpochListener | None = None
        self._on_announced: AnnouncedListener | None = None

    def subscribe(
        self,
        on_stored: StoredListener,
        on_epoch_changed: EpochListener | None,
        on_announced: AnnouncedListener | None,
    ) -> None:
        """See `InboxReader.subscribe`."""
        self._on_stored = on_stored
        self._on_epoch_changed = on_epoch_changed
        self._on_announced = on_announced

    # --- subscriptions

    async def follow(self, user: str, connection: RedisConnection) -> None:
        """
        Subscribe to `user`, and wait until Redis has confirmed it.

        Raises:
            StoreUnavailableError: If Redis does not confirm in time. The subscription
                stays, and is repeated on the next connection.

        """
        channel = self._channel(user)
        subscription = self._followed.get(channel)
        if subscription is None:
            subscription = Subscription(user, tag_of(user), channel)
            self._followed[channel] = subscription
            connection.send(self._subscribe, channel)
        try:
            async with asyncio.timeout(self._subscribe_s):
                await subscription.confirmed.wait()
        except TimeoutError as exc:
            problem = f"a subscription was not confirmed within {self._subscribe_s:g} s"
            raise StoreUnavailableError(self._store, problem) from exc

    def unfollow(self, user: str, connection: RedisConnection | None) -> None:
        """Unsubscribe from `user`; `connection` is ``None`` while there is none."""
        subscription = self._followed.pop(self._channel(user), None)
        if subscription is not None and connection is not None:
            connection.send(self._unsubscribe, subscription.channel)

    def mark_unconfirmed(self, tags: Tags) -> None:
        """Note that the connection that had the subscriptions of `tags` is lost."""
        for subscription in self._followed.values():
            if subscription.tag in tags:
                subscription.confirmed.clear()

    def resubscribe(
        self, connection: RedisConnection, tags: Tags
    ) -> list[Subscription]:
        """Subscribe to all followed users of `tags` on a new connection; return them."""
        found = [s for s in self._followed.values() if s.tag in tags]
        for part in self._split(found):
            connection.send(self._subscribe, *(each.channel for each in part))
        return found

    def newest_queries(
        self, subscriptions: Sequence[Subscription]
    ) -> Iterator[tuple[Sequence[Subscription], Sequence[Argument]]]:
        """Yield commands that read the newest message of each user, and for which users."""
        for part in self._split(subscriptions):
            key = f"{self._prefixes[part[0].tag]}h"
            command: list[Argument] = [b"EVALSHA", NEWEST.sha, 1, key]
            for each in part:
                command += (self._prefixes[each.tag], each.user)
            yield part, command

    def _split(
        self, subscriptions: Sequence[Subscription]
    ) -> Iterator[Sequence[Subscription]]:
        """Split a long list, because of the server's time and, in a cluster, its slots."""

        def tag(subscription: Subscription) -> int:
            return subscription.tag if self._is_cluster else 0

        for _, group in groupby(sorted(subscriptions, key=tag), tag):
            same_slot = list(group)
            for start in range(0, len(same_slot), _PART):
                yield same_slot[start : start + _PART]

    def _channel(self, user: str) -> bytes:
        return f"{self._prefixes[tag_of(user)]}c:{user}".encode()

    # --- messages

    def announce(
        self, user: str, messages: Sequence[Message], connection: RedisConnection
    ) -> "asyncio.Future[Any]":
        """Send ephemeral messages of `user` to all bridges; return the reply."""
        announcement = pack_announcement(self.epochs[tag_of(user)], messages)
        return connection.call(self._publish, self._channel(user), announcement)

    def on_push(self, pushes: Sequence[Sequence[Any]]) -> None:
        """Handle the pushes of one read from a socket, in order."""
        fresh: list[Stored] = []
        followed = self._followed
        for push in pushes:
            subscription = followed.get(push[1])
            if subscription is None:
                # Otherwise the user was unfollowed meanwhile.
                if push[0] in _MESSAGES and self._revocations.is_channel(push[1]):
                    # Windows receive what was stored before, and nothing after.
                    self._hand_over(fresh)
                    fresh = []
                    self._revocations.index.add(parse_revocation(push[2]))
                continue
            if push[0] in _MESSAGES:
                epoch, messages = unpack_publication(subscription.user, push[2])
                if not messages[0].offset:
                    self._hand_over(fresh)
                    fresh = []
                    if self._on_announced is not None:
                        self._on_announced([each.message for each in messages])
                    continue
                if epoch != self.epochs[subscription.tag]:
                    # Messages of the old epoch must be handed over before the
                    # new one is reported.
                    self._hand_over(fresh)
                    fresh = []
                    self.note_epoch(subscription.tag, epoch)
                subscription.newest = messages[-1].offset
                fresh += messages
            elif push[0] in _SUBSCRIBED:
                subscription.confirmed.set()
        self._hand_over(fresh)

    def take_newest(
        self, subscriptions: Sequence[Subscription], reply: Sequence[Any]
    ) -> None:
        """Hand over the newest messages, as far as the feed has not received them."""
        fresh: list[Stored] = []
        for index, subscription in enumerate(subscriptions):
            epoch, last, element = reply[3 * index : 3 * index + 3]
            if epoch:
                self.note_epoch(subscription.tag, epoch.decode())
            if last > subscription.newest and element:
                subscription.newest = last
                fresh.append(Stored(unpack(subscription.user, element), last))
        self._hand_over(fresh)

    def note_epoch(self, tag: int, epoch: str) -> None:
        """Remember the epoch of a tag; if it changed, report its followed users."""
        before = self.epochs[tag]
        if epoch == before:
            return
        self.epochs[tag] = epoch
        if not before:
            return
        users = []
        for subscription in self._followed.values():
            if subscription.tag == tag:
                subscription.newest = 0
                users.append(subscription.user)
        if users and self._on_epoch_changed is not None:
            self._on_epoch_changed(users)

    def _hand_over(self, fresh: list[Stored]) -> None:
        if fresh and self._on_stored is not None:
            self._on_stored(fresh)
