"""The live feed: the order of messages and revocations in one read from the socket."""

import asyncio
from struct import pack as pack_struct
from typing import Any

from bridge.clock import SteadyClock
from bridge.core.message import Message
from bridge.core.revocation import Revocation
from bridge.inbox.redis.encoding import key_prefixes, pack, tag_of
from bridge.inbox.redis.feed import Feed
from bridge.inbox.redis.revocations import RedisRevocations

PREFIXES = key_prefixes("bridge", 0)
EPOCH = "0123456789"


class QuietConnection:
    """A connection whose subscriptions are confirmed by the test."""

    def send(self, command: bytes, *channels: bytes | str) -> None:
        """Send nothing."""


def stored(user: str, offset: int) -> list[Any]:
    """Return the push of one message."""
    element = pack(Message(user, "message", b"%d" % offset, 1.0))
    head = pack_struct("<Q10sI", offset, EPOCH.encode(), len(element))
    return [b"message", f"{PREFIXES[tag_of(user)]}c:{user}".encode(), head + element]


def revoked(revocation: Revocation) -> list[Any]:
    """Return the push of a revocation."""
    channel = f"{PREFIXES[tag_of(revocation.user)]}revoked"
    return [b"message", channel.encode(), revocation.render()]


async def test_messages_are_handed_over_up_to_a_revocation_before_it_is_reported() -> (
    None
):
    """Windows receive what was stored before it, and nothing that was stored after it."""
    revocations = RedisRevocations(PREFIXES, SteadyClock(), is_cluster=False)
    feed = Feed("redis", PREFIXES, revocations, is_cluster=False, subscribe_s=1)
    order: list[object] = []
    feed.subscribe(
        lambda batch: order.extend(each.offset for each in batch), None, None
    )
    revocations.index.subscribe(order.append)
    channel = stored("ann", 1)[1]
    for tag in range(len(PREFIXES)):
        feed.note_epoch(tag, EPOCH)
    made = Revocation("ann", 9e9, made_s=1.0)
    following = asyncio.create_task(feed.follow("ann", QuietConnection()))  # type: ignore[arg-type] # it only sends
    await asyncio.sleep(0)
    feed.on_push([[b"subscribe", channel, 1]])
    await following

    feed.on_push([stored("ann", 1), stored("ann", 2), revoked(made), stored("ann", 3)])
    feed.on_push([[b"subscribe", revoked(made)[1], 1], revoked(made)])

    assert order == [1, 2, made, 3]
