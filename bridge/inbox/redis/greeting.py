"""What is done on each new connection to a Redis before it is used."""

from collections.abc import Sequence

from bridge.core.redis_address import RedisAddress
from bridge.inbox.redis import scripts
from bridge.inbox.redis.connection import ask
from bridge.inbox.redis.feed import Feed, pieces, words_for
from bridge.inbox.redis.protocol import Link
from bridge.inbox.redis.servers import begin


async def greet(
    address: RedisAddress,
    link: Link,
    tags: Sequence[int],
    prefixes: Sequence[str],
    feed: Feed,
) -> None:
    """
    Look at the epochs, and subscribe to all users of these tags who are followed.

    Args:
        address: How to call it in errors, and what it is.
        link: The new connection.
        tags: Whose keys the server has, in order.
        prefixes: Of the keys of all tags.
        feed: Who is followed, and what is told of what came meanwhile.

    Raises:
        StoreUnavailableError: If it cannot be used now.

    """
    # In a cluster each tag is in a slot of its own, and a script must stay in one.
    is_cluster = address.kind == "cluster"
    its = [prefixes[tag] for tag in tags]
    epochs = await begin(
        address, link, [[each] for each in its] if is_cluster else [its]
    )
    subscriptions = feed.resubscribe(link, frozenset(tags), by_tag=is_cluster)
    for tag, epoch in zip(tags, epochs, strict=True):
        feed.note_epoch(tag, epoch)
    for piece in pieces(subscriptions, by_tag=is_cluster):
        answer = await ask(
            address,
            link,
            b"EVALSHA",
            scripts.NEWEST.sha,
            1,
            f"{prefixes[piece[0].tag]}h",
            *words_for(piece, prefixes),
        )
        feed.newest(piece, answer)
