"""Frames from pages: read in any pieces, by the rules of RFC 6455 and no other."""

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
    CloseCode,
    FrameReader,
    Opcode,
    WebsocketError,
    close_frame,
    close_reply,
    pong_frame,
    switching_protocols,
    websocket_key,
)

MAX_BYTES = 70_000


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    head: int = 0x80,
    mask: bytes = b"\x01\x02\x03\x04",
) -> bytes:
    """Return one frame as a page sends it (RFC 6455 section 5.2)."""
    length = len(payload)
    size = (
        bytes((0x80 | length,))
        if length < 126
        else b"\xfe" + length.to_bytes(2, "big")
        if length < 1 << 16
        else b"\xff" + length.to_bytes(8, "big")
    )
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return bytes((head | opcode,)) + size + mask + masked


def read(data: bytes, cuts: tuple[int, ...] = ()) -> list[tuple[int, bytes]]:
    """Return what is in `data` if it arrives in pieces that end at `cuts`."""
    reader = FrameReader(max_bytes=MAX_BYTES)
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
def test_what_a_page_sends_arrives_whole_however_it_is_cut(
    sent: list[tuple[tuple[int, bytes], bytes]], cuts: tuple[int, ...]
) -> None:
    """TCP cuts where it likes, and browsers choose a mask for each frame."""
    data = b"".join(frame(*message, mask=mask) for message, mask in sent)

    assert read(data, cuts) == [message for message, _ in sent]


@given(st.lists(st.binary(max_size=50), min_size=2, max_size=6), st.binary(), CUTS)
def test_a_message_in_pieces_comes_out_as_one_with_pings_in_between(
    parts: list[bytes], ping: bytes, cuts: tuple[int, ...]
) -> None:
    """A ping must not wait for the end of a long message (section 5.4)."""
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
        (frame(0, b"x"), CloseCode.PROTOCOL_ERROR),  # goes on with nothing
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
def test_what_breaks_the_protocol_is_refused_with_its_code(
    data: bytes, code: CloseCode
) -> None:
    """At once, byte by byte too: a length is refused before its bytes are kept."""
    for cuts in ((), tuple(range(min(len(data), 40)))):
        with pytest.raises(WebsocketError) as refused:
            read(data, cuts)
        assert refused.value.code is code
        assert str(refused.value)


def test_a_character_may_be_cut_between_two_frames() -> None:
    """Text is checked when it is whole."""
    assert read(frame(1, b"\xc3", head=0) + frame(0, b"\xa9")) == [(1, "é".encode())]


def test_a_reader_keeps_nothing_of_what_was_read() -> None:
    """There is one for each idle window."""
    reader = FrameReader(max_bytes=MAX_BYTES)
    reader.feed(frame(1, b"x" * 1000) + frame(1, b"y" * 1000)[:500])
    assert reader.next() == (1, b"x" * 1000)
    assert reader.next() is None
    reader.feed(frame(1, b"y" * 1000)[500:])
    assert reader.next() == (1, b"y" * 1000)

    assert reader._buffer == b""
    assert reader._parts is None


# --- the same bytes, read by another library


KINDS: dict[type[Event], int] = {TextMessage: 1, BytesMessage: 2, Ping: 9, Pong: 10}


def reference(data: bytes) -> tuple[list[tuple[int, bytes]], int | None]:
    """Return the messages that wsproto finds in `data`, and the code if it ends there."""
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
def test_a_reader_agrees_with_wsproto_about_any_bytes(
    data: bytes, cuts: tuple[int, ...]
) -> None:
    """
    The same messages before the first fault, and a fault where it sees one.

    Only the moment differs in two cases: it waits for a whole head before it looks for the
    mask, and looks at text before that is whole.
    """
    reader = FrameReader(max_bytes=1 << 20)
    ours: list[tuple[int, bytes]] = []
    goes_on = True
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for start, end in pairwise(edges):
            reader.feed(data[start:end])
            while goes_on and (each := reader.next()) is not None:
                goes_on = each[0] != Opcode.CLOSE
                ours += [each] if goes_on else []
    except WebsocketError:
        goes_on = False

    theirs, code = reference(data)

    assert ours[: len(theirs)] == theirs
    if goes_on:
        assert ours == theirs if code is None else code == CloseCode.INVALID_TEXT
    elif code is None:
        head = bytes(12)  # more than any head lacks
        assert reference(data + head)[1] is not None


# --- answers


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 3000, 4999])
def test_a_close_is_answered_with_its_own_code(code: int) -> None:
    """Section 5.5.1; the reason is not repeated."""
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
def test_a_close_that_may_not_be_sent_is_a_fault(payload: bytes) -> None:
    """Section 7.4: some codes never stand on the wire, and the reason is text."""
    with pytest.raises(WebsocketError):
        close_reply(payload)


def test_a_ping_is_answered_with_what_it_said() -> None:
    """Section 5.5.3."""
    assert pong_frame(b"abc") == b"\x8a\x03abc"


# --- the handshake

ASKS = {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_the_handshake_is_answered_as_in_the_rfc() -> None:
    """Section 1.3 has the example."""
    key = websocket_key(ASKS)
    assert key == ASKS["sec-websocket-key"]
    answer = switching_protocols(key).split(b"\r\n")
    assert answer[0] == b"HTTP/1.1 101 Switching Protocols"
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer
    assert answer[-2:] == [b"", b""]


@pytest.mark.parametrize(
    ("name", "value", "is_good"),
    [
        ("upgrade", "WebSocket", True),
        ("upgrade", "h2c", False),
        ("connection", "keep-alive, Upgrade", True),
        ("connection", "keep-alive", False),
        ("sec-websocket-version", "8", False),
        ("sec-websocket-key", "", False),
        ("sec-websocket-key", "dGhlIHNhbXBsZQ==", False),
        ("sec-websocket-key", "not base64 at all, no", False),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25j\u00e9==", False),
    ],
)
def test_only_a_whole_handshake_has_a_key(
    name: str, value: str, *, is_good: bool
) -> None:
    """Section 4.2.1."""
    assert bool(websocket_key(ASKS | {name: value})) is is_good
    assert websocket_key({k: v for k, v in ASKS.items() if k != name}) is None
