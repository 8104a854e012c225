"""Client frames, received in any pieces, are parsed strictly by RFC 6455."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from bridge.core.websocket import (
    FRAGMENTS_MAX,
    CloseCode,
    CloseFrameSearch,
    Opcode,
    WebSocketError,
    WebSocketFrameReader,
    close_frame,
    close_reply,
    pong_frame,
)

MAX_BYTES = 70_000


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    head: int = 0x80,
    mask: bytes = b"\x01\x02\x03\x04",
) -> bytes:
    """Return one frame as a client sends it (RFC 6455 section 5.2)."""
    length = len(payload)
    size = (
        bytes((0x80 | length,))
        if length < 126
        else b"\xfe" + length.to_bytes(2, "big")
        if length < 1 << 16
        else b"\xff" + length.to_bytes(8, "big")
    )
    key = (mask * (length // 4 + 1))[:length]  # as one number: some payloads are long
    masked = int.from_bytes(payload) ^ int.from_bytes(key)
    return bytes((head | opcode,)) + size + mask + masked.to_bytes(length)


def read(data: bytes, cuts: tuple[int, ...] = ()) -> list[tuple[int, bytes]]:
    """Return the frames in `data` when it arrives in pieces that end at `cuts`."""
    reader = WebSocketFrameReader(max_bytes=MAX_BYTES)
    found: list[tuple[int, bytes]] = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            reader.feed(data[start:end])
            while (each := reader.next()) is not None:
                found.append(each)
    return found


CUTS = st.lists(st.integers(0, 2**20), max_size=6).map(tuple)
MASKS = st.binary(min_size=4, max_size=4)
MESSAGES = st.tuples(
    st.just(1), st.text(max_size=200).map(str.encode) | st.just(b"x" * 65_600)
) | st.tuples(st.sampled_from([2, 9, 10]), st.binary(max_size=125))


@given(st.lists(st.tuples(MESSAGES, MASKS), max_size=8), CUTS)
def test_frames_are_complete_however_the_bytes_are_split(
    sent: list[tuple[tuple[int, bytes], bytes]], cuts: tuple[int, ...]
) -> None:
    """TCP splits the stream anywhere, and browsers choose a mask for each frame."""
    data = b"".join(frame(*message, mask=mask) for message, mask in sent)

    assert read(data, cuts) == [message for message, _ in sent]


@given(st.lists(st.binary(max_size=50), min_size=2, max_size=6), st.binary(), CUTS)
def test_a_fragmented_message_is_joined_and_pings_inside_it_are_returned(
    parts: list[bytes], ping: bytes, cuts: tuple[int, ...]
) -> None:
    """A ping must not wait for the end of a long message (RFC 6455 section 5.4)."""
    ping = ping[:125]
    first, *middle, last = parts
    data = frame(2, first, head=0)
    for part in middle:
        data += frame(0, part, head=0) + frame(9, ping)
    data += frame(0, last)

    found = read(data, cuts)

    assert found == [(9, ping)] * len(middle) + [(2, b"".join(parts))]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b"x", head=0xC0), CloseCode.PROTOCOL_ERROR),  # compressed
        (frame(1, b"x", head=0x90), CloseCode.PROTOCOL_ERROR),
        (b"\x81\x01x", CloseCode.PROTOCOL_ERROR),  # not masked
        (frame(3), CloseCode.PROTOCOL_ERROR),
        (frame(11), CloseCode.PROTOCOL_ERROR),
        (frame(0, b"x"), CloseCode.PROTOCOL_ERROR),  # continues no message
        (frame(1, b"x", head=0) + frame(1), CloseCode.PROTOCOL_ERROR),
        (frame(1, head=0) + frame(2), CloseCode.PROTOCOL_ERROR),
        (frame(9, head=0), CloseCode.PROTOCOL_ERROR),
        (frame(9, b"x" * 126), CloseCode.PROTOCOL_ERROR),
        (b"\x81\xfe\x00\x7d", CloseCode.PROTOCOL_ERROR),  # 125 in 16 bits
        (b"\x81\xff" + (65535).to_bytes(8, "big"), CloseCode.PROTOCOL_ERROR),
        (b"\x81\xff" + (1 << 63).to_bytes(8, "big"), CloseCode.PROTOCOL_ERROR),
        (b"\x81\xff" + (MAX_BYTES + 1).to_bytes(8, "big"), CloseCode.TOO_BIG),
        (
            frame(1, b"x" * 60_000, head=0) + frame(0, b"x" * 10_001, head=0),
            CloseCode.TOO_BIG,
        ),
        (frame(1, b"\xff"), CloseCode.INVALID_TEXT),
        (frame(1, b"\xed\xa0\x80"), CloseCode.INVALID_TEXT),  # a lone surrogate
        (frame(1, b"\xc3", head=0) + frame(0, b""), CloseCode.INVALID_TEXT),
    ],
)
def test_a_protocol_violation_is_refused_with_its_code(
    data: bytes, code: CloseCode
) -> None:
    """Byte by byte too: an excessive length is refused before its payload is buffered."""
    for cuts in ((), tuple(range(min(len(data), 40)))):
        with pytest.raises(WebSocketError) as refused:
            read(data, cuts)
        assert refused.value.code is code
        assert str(refused.value)


def test_a_message_has_a_bounded_number_of_frames() -> None:
    """Frames inside a message are not counted as packets: empty ones could flood."""
    longest = [frame(1, b"x", head=0), *[frame(0, head=0)] * (FRAGMENTS_MAX - 2)]

    assert read(b"".join([*longest, frame(0, b"y")] * 2)) == [(1, b"xy")] * 2

    with pytest.raises(WebSocketError) as refused:
        read(b"".join([*longest, frame(0, head=0), frame(0, b"y")]))
    assert refused.value.code is CloseCode.TOO_BIG


def test_a_character_may_be_split_between_two_frames() -> None:
    """Text is validated when the message is complete."""
    assert read(frame(1, b"\xc3", head=0) + frame(0, b"\xa9")) == [(1, "é".encode())]


def test_a_reader_keeps_no_consumed_bytes() -> None:
    """There is one reader for each idle window."""
    reader = WebSocketFrameReader(max_bytes=MAX_BYTES)
    reader.feed(frame(1, b"x" * 1000) + frame(1, b"y" * 1000)[:500])
    assert reader.next() == (1, b"x" * 1000)
    assert reader.next() is None
    reader.feed(frame(1, b"y" * 1000)[500:])
    assert reader.next() == (1, b"y" * 1000)

    assert reader._buffer == b""
    assert reader._parts is None


# --- the same bytes, parsed by another library


KINDS: dict[type[Event], int] = {TextMessage: 1, BytesMessage: 2, Ping: 9, Pong: 10}


def reference(data: bytes) -> tuple[list[tuple[int, bytes]], int | None]:
    """Return the messages that wsproto finds in `data`, and its close code if it closes."""
    connection = Connection(ConnectionType.SERVER)
    found: list[tuple[int, bytes]] = []
    parts = b""
    try:
        connection.receive_data(data)
        for event in connection.events():
            if isinstance(event, CloseConnection):
                return found, event.code
            if isinstance(event, Ping | Pong):
                found.append((KINDS[type(event)], bytes(event.payload)))
            elif isinstance(event, Message):
                piece = event.data
                parts += piece.encode() if isinstance(piece, str) else bytes(piece)
                if event.message_finished:
                    found.append((KINDS[type(event)], parts))
                    parts = b""
    except RemoteProtocolError as exc:
        return found, getattr(exc.event_hint, "code", CloseCode.PROTOCOL_ERROR)
    return found, None


PIECES = st.one_of(
    st.builds(
        frame,
        st.integers(0, 15),
        st.binary(max_size=140) | st.text(max_size=30).map(str.encode),
        head=st.sampled_from([0x80, 0x80, 0x80, 0x00, 0x00, 0xC0, 0x20]),
        mask=MASKS,
    ),
    st.builds(frame, st.sampled_from([0, 1, 9]), st.just(b"ok"), mask=MASKS),
    st.builds(frame, st.sampled_from([0, 1]), st.just(b"ok"), head=st.just(0)),
    st.binary(max_size=6),
)


@given(st.lists(PIECES, max_size=6).map(b"".join), CUTS)
def test_a_reader_agrees_with_wsproto_on_arbitrary_bytes(
    data: bytes, cuts: tuple[int, ...]
) -> None:
    """
    The same messages before the first error, and an error where wsproto finds one.

    Only the moment differs, in two cases: wsproto waits for a complete header before it
    checks the mask, and it validates text before the message is complete.
    """
    reader = WebSocketFrameReader(max_bytes=1 << 20)
    ours: list[tuple[int, bytes]] = []
    is_open = True
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for start, end in pairwise(edges):
            reader.feed(data[start:end])
            while is_open and (each := reader.next()) is not None:
                is_open = each[0] != Opcode.CLOSE
                ours += [each] if is_open else []
    except WebSocketError:
        is_open = False

    theirs, code = reference(data)

    assert ours[: len(theirs)] == theirs
    if is_open:
        assert ours == theirs if code is None else code == CloseCode.INVALID_TEXT
    elif code is None:
        header = bytes(12)  # completes any header
        assert reference(data + header)[1] is not None


# --- replies


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 3000, 4999])
def test_a_close_is_answered_with_its_own_code(code: int) -> None:
    """RFC 6455 section 5.5.1; the reason is not repeated."""
    payload = code.to_bytes(2, "big") + "bye é".encode()
    assert close_reply(payload) == close_frame(code)
    assert close_frame(code) == b"\x88\x02" + code.to_bytes(2, "big")
    assert close_reply(b"") == close_frame() == b"\x88\x00"


@pytest.mark.parametrize(
    "payload",
    [
        b"\x03",
        *(
            code.to_bytes(2, "big")
            for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)
        ),
        b"\x03\xe8\xff",
    ],
)
def test_an_invalid_close_frame_is_a_protocol_error(payload: bytes) -> None:
    """RFC 6455 section 7.4: some codes are reserved, and the reason is UTF-8."""
    with pytest.raises(WebSocketError):
        close_reply(payload)


def test_a_pong_repeats_the_payload_of_its_ping() -> None:
    """RFC 6455 section 5.5.3."""
    assert pong_frame(b"abc") == b"\x8a\x03abc"


@given(
    st.lists(st.integers(0, 200) | st.sampled_from([65_535, 65_536])),
    st.lists(st.integers(0, 1000), max_size=4),
    st.booleans(),
)
def test_a_close_frame_is_found_behind_any_frames_in_any_pieces(
    lengths: list[int], cuts: list[int], is_closed: bool
) -> None:
    """A payload that looks like a close frame is none."""
    data = b"".join(frame(Opcode.TEXT, b"\x88" * length) for length in lengths)
    data += frame(Opcode.CLOSE) if is_closed else b""
    search = CloseFrameSearch()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]

    found = [search.feed(data[start:end]) for start, end in pairwise(edges)]

    assert (True in found) == is_closed


def test_the_search_for_a_close_frame_ends_after_many_frames() -> None:
    """A flood must not cost more after the close than before it, in time or memory."""
    search = CloseFrameSearch()
    assert not search.feed(frame(Opcode.PONG) * 20_000)
    assert not search.feed(frame(Opcode.CLOSE))
    assert not search._header
