"""The encoding of messages in Redis, and the hash tags of users."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bridge.core.message import Message
from bridge.core.message_options import MessageOptions
from bridge.inbox.redis.encoding import (
    TAG_COUNT,
    pack,
    slot_of_tag,
    tag_names,
    tag_of,
    unpack,
)

_TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
_KEYS = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1)
_TRACES = st.from_regex(r"[0-9a-f]{2}-[0-9a-f-]+", fullmatch=True)
_TIMES = st.floats(0, 1e11)


@given(
    st.builds(
        Message,
        user=st.just("ann"),
        event=_TEXTS.filter(bool),
        data=st.binary(max_size=300),
        taken_s=_TIMES,
        id=st.none() | _TEXTS,
        deadline_s=st.none() | _TIMES,
        published_s=st.none() | _TIMES,
        trace_parent=st.none() | _TRACES,
        options=st.none()
        | st.builds(
            MessageOptions, key=_KEYS, throttle_s=st.none() | st.floats(0.001, 3600)
        ),
    ),
    st.binary(max_size=9),
)
def test_unpack_reverses_pack(message: Message, around: bytes) -> None:
    """Also in the middle of a larger string, as in a publication."""
    element = pack(message)

    assert unpack("ann", element) == message
    start = len(around)
    whole = around + element + around
    assert unpack("ann", whole, start, start + len(element)) == message


def test_nodes_with_equal_slot_ranges_get_equal_shares_of_the_tags() -> None:
    """For one master, some, and as many as there are tags."""
    slots = sorted(slot_of_tag(name) for name in tag_names())

    assert len(set(slots)) == TAG_COUNT
    for nodes in (1, 3, 16, 100, TAG_COUNT):
        shares = Counter(slot * nodes // 16384 for slot in slots)
        assert len(shares) == nodes
        assert max(shares.values()) - min(shares.values()) <= 2


def test_users_are_spread_over_the_tags() -> None:
    """The tag depends on the name only: a change would lose the keys of a user."""
    shares = Counter(tag_of(f"user-{number}") for number in range(TAG_COUNT * 100))

    assert len(shares) == TAG_COUNT
    assert max(shares.values()) < 160
    assert tag_of("ann") == 115
