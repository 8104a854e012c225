"""
How a message is encoded in a user's list and in the live feed, and which keys a user has.

A list element is one string: when the message was taken, its deadline, the length of the
following header, then id, event, the producer's metadata, options, and last the data. The Lua
scripts read the first 22 bytes of it; only this module reads the rest.
"""

from binascii import crc_hqx
from collections.abc import Sequence
from functools import cache
from math import inf, isnan, nan
from struct import Struct
from typing import Final
from zlib import crc32

from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions, Tracking
from bridge.enums import EVENT_DEFAULT

# Taken, deadline (inf = none), bytes between this header's 20 bytes and the data, bytes of
# the id.
_HEAD: Final = Struct("<ddHH")
_EVENT: Final = Struct("<H")
_PUBLISHED: Final = Struct("<d")
_PUBLICATION: Final = Struct("<Q10s")
_LENGTH: Final = Struct("<I")
_NO_ID: Final = 0xFFFF
# The last byte of the header of a tracked message. What is tracked is in its receipt.
_TRACKED: Final = b"\1"
_SOMETHING: Final = Tracking(wants_receipt=True)

# A set of hash tags, by number.
Tags = frozenset[int]

# The number of hash tags that users are spread over, independent of BRIDGE_SHARDS. It is
# the largest number of masters that a cluster can make use of, and must never change: it
# decides which keys a user has.
TAG_COUNT: Final = 256
ALL_TAGS: Final[Tags] = frozenset(range(TAG_COUNT))
_SLOTS: Final = 16384


def tag_of(user: str) -> int:
    """Return the number of the hash tag of all keys of `user`."""
    return crc32(user.encode()) % TAG_COUNT


@cache
def tag_names() -> tuple[str, ...]:
    """
    Return the names of all tags: numbers whose slots are evenly spaced.

    Masters own ranges of slots, so each gets an equal share of the tags.
    """
    width = _SLOTS // TAG_COUNT
    names: dict[int, str] = {}
    number = 0
    while len(names) < TAG_COUNT:
        names.setdefault(slot_of_tag(str(number)) // width, str(number))
        number += 1
    return tuple(names[index] for index in range(TAG_COUNT))


def slot_of_tag(name: str) -> int:
    """Return the cluster slot of keys with `{name}`."""
    return crc_hqx(name.encode(), 0) % _SLOTS


def key_prefixes(namespace: str, db: int) -> list[str]:
    """
    Return the prefix of the keys and channels of each tag.

    The number of the database is part of it, because databases separate keys but not
    channels.
    """
    return [f"{namespace}/{db}:{{{name}}}:" for name in tag_names()]


def migration_key(prefixes: Sequence[str]) -> str:
    """Return the key that records the progress of a migration into the store."""
    return f"{prefixes[0]}carry"


def pack(message: Message) -> bytes:
    """Encode `message` as a list element."""
    message_id = b"" if message.id is None else message.id.encode()
    event = b"" if message.event == EVENT_DEFAULT else message.event.encode()
    origin = b""
    key = message.options and message.options.key
    if key or message.published_s is not None or message.trace_parent is not None:
        published_s = nan if message.published_s is None else message.published_s
        origin = _PUBLISHED.pack(published_s) + (message.trace_parent or "").encode()
    if message.options and key:  # rooms need them
        origin += f"\0{message.options.throttle_s or ''}\0{key}".encode()
    options = message.options
    if options is not None and options.tracking is not None:
        origin = (origin or _PUBLISHED.pack(nan)) + _TRACKED
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


def pack_key(message: Message) -> bytes:
    """
    Encode what a newer message must have in common with `message` to replace it.

    A byte before it says if the key is to be retained (2) or cleared (3).
    """
    options = message.options
    if options is None or options.key is None:
        return b""
    mode = "\2" if options.is_retained else "\3" if options.is_cleared else ""
    return f"{mode}{message.event}\0{options.key}".encode()


def unpack(
    user: str, element: bytes, start: int = 0, end: int | None = None
) -> Message:
    """Decode the message of `user` that `element` holds from `start` to `end`."""
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
    published_s = trace_parent = options = None
    if at < data_at:
        (published_s,) = _PUBLISHED.unpack_from(element, at)
        published_s = None if isnan(published_s) else published_s
        origin = element[at + 8 : data_at]
        tracking = _SOMETHING if origin.endswith(_TRACKED) else None
        trace_parent, _, texts = origin.removesuffix(_TRACKED).decode().partition("\0")
        if texts or tracking:
            throttle, _, key = texts.partition("\0")
            throttle_s = float(throttle) if throttle else None
            options = MessageOptions(
                key=key or None, throttle_s=throttle_s, tracking=tracking
            )
    return Message(
        user,
        event,
        element[data_at:end],
        taken_s,
        message_id,
        None if deadline_s == inf else deadline_s,
        published_s,
        trace_parent or None,
        options,
    )


def pack_announcement(epoch: str, messages: Sequence[Message]) -> bytes:
    """Encode ephemeral messages for the live feed, where the offset 0 marks them."""
    parts = [_PUBLICATION.pack(0, epoch.encode())]
    for message in messages:
        element = pack(message)
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def unpack_publication(user: str, published: bytes) -> tuple[str, list[Stored]]:
    """
    Decode what was published for `user` at once: the epoch and the messages.

    The offsets of ephemeral messages start at 0, which no stored message has.
    """
    offset, epoch = _PUBLICATION.unpack_from(published)
    at = 18
    messages: list[Stored] = []
    while at < len(published):
        (length,) = _LENGTH.unpack_from(published, at)
        at += 4
        messages.append(Stored(unpack(user, published, at, at + length), offset))
        at += length
        offset += 1
    return epoch.decode(), messages
