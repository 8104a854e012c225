"""
How a message stands in a user's list, and in the live feed; and where a user's keys are.

An element is one string: when it was taken, its deadline, the length of what follows, then
id, event, what its producer said of its origin, and at the end the data. The scripts
(redis_scripts) read the first 22 bytes, nobody but this file the rest.
"""

from binascii import crc_hqx
from functools import cache
from math import inf, isnan, nan
from struct import Struct
from typing import Final
from zlib import crc32

from bridge.core.message import Message, Stored
from bridge.enums import EVENT_DEFAULT

# Taken, deadline (inf = none), bytes between this and the data, bytes of the id.
_HEAD: Final = Struct("<ddHH")
_EVENT: Final = Struct("<H")
_PUBLISHED: Final = Struct("<d")
_FEED: Final = Struct("<Q10s")
_LENGTH: Final = Struct("<I")
_NO_ID: Final = 0xFFFF

# The users are spread over so many hash tags, whatever BRIDGE_SHARDS is: it is the largest
# number of masters that a cluster can make use of, and never changes for a store.
TAGS: Final = 256
_SLOTS: Final = 16384


def tag_of(user: str) -> int:
    """Return the number of the tag that all keys of `user` stand under."""
    return crc32(user.encode()) % TAGS


@cache
def tag_names() -> tuple[str, ...]:
    """
    Return the names of all tags: numbers whose slots lie evenly apart in a cluster.

    Nodes hold ranges of slots, so each gets its share of the tags, and not by chance.
    """
    width = _SLOTS // TAGS
    names: dict[int, str] = {}
    number = 0
    while len(names) < TAGS:
        names.setdefault(slot_of_tag(str(number)) // width, str(number))
        number += 1
    return tuple(names[place] for place in range(TAGS))


def slot_of_tag(name: str) -> int:
    """Return the slot of a cluster that keys with `{name}` are in."""
    return crc_hqx(name.encode(), 0) % _SLOTS


def pack(message: Message) -> bytes:
    """Write `message` as an element."""
    message_id = b"" if message.id is None else message.id.encode()
    event = b"" if message.event == EVENT_DEFAULT else message.event.encode()
    origin = b""
    if message.published_s is not None or message.trace_parent is not None:
        published_s = nan if message.published_s is None else message.published_s
        origin = _PUBLISHED.pack(published_s) + (message.trace_parent or "").encode()
    deadline_s = inf if message.deadline_s is None else message.deadline_s
    return b"".join(
        (
            _HEAD.pack(
                message.taken_s,
                deadline_s,
                2 + len(message_id) + len(event) + len(origin),
                _NO_ID if message.id is None else len(message_id),
            ),
            _EVENT.pack(len(event)),
            message_id,
            event,
            origin,
            message.data,
        )
    )


def unpack(
    user: str, element: bytes, start: int = 0, end: int | None = None
) -> Message:
    """Read a message of `user` from `element`, which may be a part of something larger."""
    taken_s, deadline_s, between, id_length = _HEAD.unpack_from(element, start)
    data_at = start + 20 + between
    (event_length,) = _EVENT.unpack_from(element, start + 20)
    at = start + 22
    message_id = None
    if id_length != _NO_ID:
        message_id = element[at : at + id_length].decode()
        at += id_length
    event = EVENT_DEFAULT
    if event_length:
        event = element[at : at + event_length].decode()
        at += event_length
    published_s = trace_parent = None
    if at < data_at:
        (published_s,) = _PUBLISHED.unpack_from(element, at)
        published_s = None if isnan(published_s) else published_s
        trace_parent = element[at + 8 : data_at].decode() or None
    return Message(
        user,
        event,
        element[data_at:end],
        taken_s,
        message_id,
        None if deadline_s == inf else deadline_s,
        published_s,
        trace_parent,
    )


def unpack_news(user: str, news: bytes) -> tuple[str, list[Stored]]:
    """Read what one append stored for `user`, as it is published: epoch and messages."""
    offset, epoch = _FEED.unpack_from(news)
    at = 18
    found: list[Stored] = []
    while at < len(news):
        (length,) = _LENGTH.unpack_from(news, at)
        at += 4
        found.append(Stored(unpack(user, news, at, at + length), offset))
        at += length
        offset += 1
    return epoch.decode(), found
