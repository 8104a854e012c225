"""
The live feed of inboxes in Redis: for each user who has windows here, one subscription.

What one append stored for a user comes as one push, with the epoch and the offset of its
first message. All pushes of one read from the socket go to the listener in one call. A
lost connection is a hole in the feed: when it is back, the newest message of each
followed user is handed over. If it is not the next one, the rooms see the hole, and the
windows read what they have not had from the inbox; so nothing is filled in here.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from bridge.core.message import Stored
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import EpochListener, StoredListener
from bridge.inbox.redis.encoding import TAGS, tag_of, unpack, unpack_news
from bridge.inbox.redis.protocol import Link, Word

CONFIRM_S: Final = 5.0
_PIECE: Final = 500
_MESSAGES: Final = frozenset({b"message", b"smessage"})
_SUBSCRIBED: Final = frozenset({b"subscribe", b"ssubscribe"})
_GIVEN_UP: Final = b"sunsubscribe"


class Subscription:
    """One followed user: the newest offset that came, and whether the server knows."""

    __slots__ = ("channel", "confirmed", "fed", "tag", "user")

    def __init__(self, user: str, channel: bytes) -> None:
        self.user = user
        self.tag = tag_of(user)
        self.channel = channel
        self.fed = 0
        self.confirmed = asyncio.Event()


class Feed:
    """
    Who is followed, and what comes for them.

    Attributes:
        epochs: Of each tag, as far as it is known; empty = not yet.

    """

    def __init__(
        self,
        description: str,
        channel: Callable[[str], bytes],
        *,
        is_sharded: bool,
        doubt: Callable[[], None],
    ) -> None:
        """
        Know whom to follow by which channels; nobody yet.

        Args:
            description: How to call the store in errors.
            channel: Returns a user's.
            is_sharded: Whether channels belong to slots.
            doubt: Called when a server has given a subscription up.

        """
        self._doubt = doubt
        self._description = description
        self._channel = channel
        self._subscribe, self._unsubscribe = (
            (b"SSUBSCRIBE", b"SUNSUBSCRIBE")
            if is_sharded
            else (b"SUBSCRIBE", b"UNSUBSCRIBE")
        )
        self.epochs = [""] * TAGS
        self._followed: dict[bytes, Subscription] = {}
        self._on_stored: StoredListener | None = None
        self._on_epoch_changed: EpochListener | None = None

    def subscribe(
        self, on_stored: StoredListener, on_epoch_changed: EpochListener | None
    ) -> None:
        """Call `on_stored` with messages and `on_epoch_changed` with users."""
        self._on_stored = on_stored
        self._on_epoch_changed = on_epoch_changed

    # --- who is followed

    async def follow(self, user: str, link: Link) -> None:
        """Subscribe, and wait until the server has confirmed it; errors as `read`."""
        channel = self._channel(user)
        subscription = self._followed.get(channel)
        if subscription is None:
            subscription = self._followed[channel] = Subscription(user, channel)
            link.send(self._subscribe, channel)
        try:
            async with asyncio.timeout(CONFIRM_S):
                await subscription.confirmed.wait()
        except TimeoutError as exc:
            problem = f"a subscription was not confirmed within {CONFIRM_S:.0f} s"
            raise StoreUnavailableError(self._description, problem) from exc

    def unfollow(self, user: str, link: Link | None) -> None:
        """Give a subscription up."""
        subscription = self._followed.pop(self._channel(user), None)
        if subscription is not None and link is not None:
            link.send(self._unsubscribe, subscription.channel)

    def lost(self, tags: Collection[int]) -> None:
        """Know that no subscription of these tags is confirmed any more."""
        for subscription in self._followed.values():
            if subscription.tag in tags:
                subscription.confirmed.clear()

    def resubscribe(
        self, link: Link, tags: Collection[int], *, by_tag: bool
    ) -> list[Subscription]:
        """Subscribe to all of these tags, by a new connection; returns them."""
        mine = [s for s in self._followed.values() if s.tag in tags]
        for piece in pieces(mine, by_tag=by_tag):
            link.send(self._subscribe, *(each.channel for each in piece))
        return mine

    # --- what comes

    def pushed(self, pushes: Sequence[Sequence[Any]]) -> None:
        """Take in what a server has pushed, in order."""
        fresh: list[Stored] = []
        followed = self._followed
        for push in pushes:
            kind = push[0]
            subscription = followed.get(push[1])
            if subscription is None:
                continue  # given up meanwhile
            if kind in _MESSAGES:
                epoch, news = unpack_news(subscription.user, push[2])
                if epoch != self.epochs[subscription.tag]:
                    self._hand_over(fresh)
                    fresh = []
                    self.note_epoch(subscription.tag, epoch)
                subscription.fed = news[-1].offset
                fresh += news
            elif kind in _SUBSCRIBED:
                subscription.confirmed.set()
            elif kind == _GIVEN_UP:
                self._doubt()  # not by us: its slot has another master now
        self._hand_over(fresh)

    def newest(
        self, subscriptions: Sequence[Subscription], answer: Sequence[Any]
    ) -> None:
        """Hand over what is newest of those who were followed across a lost connection."""
        fresh: list[Stored] = []
        for place, subscription in enumerate(subscriptions):
            epoch, last, element = answer[3 * place : 3 * place + 3]
            if epoch:
                self.note_epoch(subscription.tag, epoch.decode())
            if last > subscription.fed and element:
                subscription.fed = last
                fresh.append(Stored(unpack(subscription.user, element), last))
        self._hand_over(fresh)

    def note_epoch(self, tag: int, epoch: str) -> None:
        """Know the epoch of a tag; if it was another, tell whose messages may be gone."""
        before = self.epochs[tag]
        if epoch == before:
            return
        self.epochs[tag] = epoch
        if not before:
            return
        users = []
        for subscription in self._followed.values():
            if subscription.tag == tag:
                subscription.fed = 0
                users.append(subscription.user)
        if users and self._on_epoch_changed is not None:
            self._on_epoch_changed(users)

    def _hand_over(self, fresh: list[Stored]) -> None:
        if fresh and self._on_stored is not None:
            self._on_stored(fresh)


def pieces(
    subscriptions: Sequence[Subscription], *, by_tag: bool
) -> Iterator[Sequence[Subscription]]:
    """Cut a long list, so that no command is very long or, in a cluster, of two slots."""
    for _, group in groupby(
        sorted(subscriptions, key=_tag), _tag if by_tag else lambda _: 0
    ):
        mine = list(group)
        for start in range(0, len(mine), _PIECE):
            yield mine[start : start + _PIECE]


def _tag(subscription: Subscription) -> int:
    return subscription.tag


def words_for(
    subscriptions: Sequence[Subscription], prefixes: Sequence[str]
) -> list[Word]:
    """Return what the script NEWEST is told of them."""
    return [word for each in subscriptions for word in (prefixes[each.tag], each.user)]
