"""Server frames, parsed by the test itself according to RFC 6455."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core import frames
from bridge.core.clock_reading import ClockReading
from bridge.core.frames import encode_messages, encode_past, event_packet, text_frame
from bridge.core.message import Message, Stored


def read_frame(frame: bytes) -> bytes:
    """Return the payload of one complete text frame of a server (RFC 6455 section 5.2)."""
    assert frame[0] == 0b1000_0001, "FIN, no extension, opcode text"
    assert not frame[1] & 0x80, "a server does not mask"
    length, at = frame[1] & 0x7F, 2
    if length == 126:
        length, at = int.from_bytes(frame[2:4], "big"), 4
        assert length > 125, "the shortest form is required"
    elif length == 127:
        length, at = int.from_bytes(frame[2:10], "big"), 10
        assert length > 65535, "the shortest form is required"
    assert len(frame) == at + length
    return frame[at:]


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_each_length_is_encoded_in_its_shortest_form(length: int) -> None:
    """Browsers close the connection for any other form (close code 1002)."""
    payload = b"x" * length

    assert read_frame(text_frame(payload)) == payload


@given(
    st.text(min_size=1, max_size=128),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
)
def test_a_packet_holds_event_data_and_position_unchanged(
    event: str, data: object
) -> None:
    """The data is copied without decoding: it must arrive as the producer wrote it."""
    packet = event_packet(event, json.dumps(data).encode(), "epoch-7")

    assert packet[:2] == b"42"  # Engine.IO message, Socket.IO event
    assert json.loads(packet[2:]) == [event, data, "epoch-7"]


def test_the_cache_of_event_names_is_bounded() -> None:
    """Producers choose the names; names beyond the limit work without the cache."""
    for number in range(2000):
        packet = event_packet(f"event-{number}", b"null", "e-1")
        assert packet == b'42["event-%d",null,"e-1"]' % number

    assert len(frames._EVENT_JSON) <= 1024


def test_positions_exclude_older_messages_that_are_late() -> None:
    """Also those of a part, and of a message that is late itself."""
    messages = [Stored(Message("ann", "e", b"0", 0.0), offset) for offset in (2, 4)]
    clock = ClockReading(0)

    found = encode_messages(messages, epoch="e", read_clock=lambda: clock, late=[3])
    assert [packet for _, packet in found.packets] == [
        *(b'42["e",0,"e-2"]', b'42["e",0,"e-4-1"]')
    ]
    assert [found.complete(offset) for offset in (2, 4)] == [2, 2]
    assert found.after(2).complete(4) == 2
    past = encode_past(messages[0].message, epoch="e", at=4, late=[])
    assert past.packets == [(4, b'42["e",0,"e-4"]')]
    assert past.complete(4) == 4


@pytest.mark.parametrize("count", [0, 1, 3])
def test_messages_sent_together_are_joined_into_one_write(count: int) -> None:
    """A window that already has some of the messages gets the others."""
    messages = [
        Stored(Message("alice", "message", b"%d" % offset, 0.0), offset)
        for offset in range(1, count + 1)
    ]

    joined = encode_messages(messages, epoch="e", read_clock=lambda: ClockReading(0))

    packets = [b'42["message",%d,"e-%d"]' % (n, n) for n in range(1, count + 1)]
    assert joined.packets == list(enumerate(packets, start=1))
    assert joined.frames == b"".join(map(text_frame, packets))
    rest = joined.after(2)
    assert [packet for _, packet in rest.packets] == packets[2:]
    assert rest.frames == b"".join(map(text_frame, packets[2:]))
