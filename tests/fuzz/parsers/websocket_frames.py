"""Frames of WebSockets, against wsproto."""

from typing import Any, Final, cast

from wsproto.frame_protocol import FrameProtocol, ParseFailed
from wsproto.frame_protocol import Opcode as TheirOpcode

from bridge.core.websocket import (
    CloseCode,
    CloseFrameSearch,
    Opcode,
    WebSocketError,
    WebSocketFrameReader,
    close_reply,
)
from tests.fuzz.harness import first_difference, pieces

MODULES: Final = ("bridge.core.websocket",)
_MAX_BYTES: Final = 300
_MASK: Final = b"\x01\x02\x03\x04"


def _frame(first: int, payload: bytes, mask: bytes = _MASK) -> bytes:
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((first,)) + length + mask + bytes(
        byte ^ mask[at % 4] for at, byte in enumerate(payload)
    )  # fmt: skip


SEEDS: Final = (
    b"\xff" + _frame(0x81, b'42["ack","a-1"]') + _frame(0x89, b"ping"),
    b"\x01" + _frame(0x01, b"4") + _frame(0x8A, b"") + _frame(0x80, "é".encode()),
    b"\x05" + _frame(0x82, b"x" * 200) + _frame(0x88, b"\x03\xe8bye"),
    b"\x02" + _frame(0x81, b"x" * 301),
    b"\x03\x81\xff\x00\x00\x00\x00\x00\x01\x00\x00" + _MASK,
    b"\x03" + _frame(0x88, b"") + _frame(0x81, b"late"),
    b"\x03" + _frame(0x81, b"\xff"),
    b"\x03" + _frame(0x01, b"\xc3") * 2,
    b"\x09" + _frame(0x81, b"plain", b"\x00\x00\x00\x00") * 3,
)
# The codes whose meaning both implementations know.
_CERTAIN_CODES: Final = frozenset({*range(1000), 1000, 1001, 1002, 1003, 1005, 1006, *range(1007, 1012), *range(2000, 5000)})  # fmt: skip


def fuzz_one(data: bytes) -> None:
    """Any split gives the same; what wsproto accepts is accepted, and the other way round."""
    if len(data) < 2:
        return
    size, stream = data[0] or 256, data[1:]
    ours, code = _read(stream, len(stream))
    assert (ours, code) == _read(stream, size)
    theirs, has_failed = _read_theirs(stream)
    assert first_difference(ours, theirs) is None
    if code is None:
        assert has_failed or len(ours) == len(theirs)
        assert len(ours) >= len(theirs)
    else:
        # wsproto waits for the whole header.
        has_failed = has_failed or _read_theirs(stream + bytes(16))[1]
        assert has_failed or code is CloseCode.TOO_BIG
    if ours and ours[-1][0] == Opcode.CLOSE:
        _check_close(ours[-1][1])
    searches = [_finds_close(stream, each) for each in (len(stream), size)]
    assert searches[0] == searches[1]
    assert searches[0] or not (ours and ours[-1][0] == Opcode.CLOSE)


Messages = list[tuple[int, bytes]]


def _read(stream: bytes, size: int) -> tuple[Messages, CloseCode | None]:
    reader = WebSocketFrameReader(max_bytes=_MAX_BYTES)
    found: Messages = []
    fed = 0
    for piece in pieces(stream, size):
        reader.feed(piece)
        fed += len(piece)
        try:
            while (message := reader.next()) is not None:
                assert len(message[1]) <= _MAX_BYTES
                found.append(message)
                if message[0] == Opcode.CLOSE:
                    return found, None
        except WebSocketError as exc:
            return found, exc.code
        assert len(reader._parts or b"") <= _MAX_BYTES
        # One incomplete frame is kept, with its longest header.
        assert len(reader._buffer) - reader._start <= _MAX_BYTES + 14
    return found, None


def _read_theirs(stream: bytes) -> tuple[Messages, bool]:
    protocol = FrameProtocol(client=False, extensions=[])
    found: Messages = []
    parts = bytearray()
    kind = 0
    protocol.receive_bytes(stream)
    try:
        for frame in protocol.received_frames():
            if frame.opcode is TheirOpcode.CLOSE:
                code, reason = cast("tuple[int, str | None]", frame.payload)
                sent = b"" if code == 1005 else int(code).to_bytes(2, "big")
                found.append((Opcode.CLOSE, sent + (reason or "").encode()))
                return found, False
            payload: Any = frame.payload
            raw = payload.encode() if isinstance(payload, str) else bytes(payload)
            if frame.opcode >= Opcode.CLOSE:
                found.append((int(frame.opcode), raw))
                continue
            kind = int(frame.opcode) or kind
            parts += raw
            if frame.message_finished:
                found.append((kind, bytes(parts)))
                parts.clear()
    except ParseFailed:
        return found, True
    return found, False


def _check_close(payload: bytes) -> None:
    has_failed = _read_theirs(_frame(0x88, payload))[1]
    try:
        close_reply(payload)
    except WebSocketError:
        is_refused = True
    else:
        is_refused = False
    code = int.from_bytes(payload[:2], "big") if payload else 1000
    if len(payload) == 1 or code in _CERTAIN_CODES:
        assert is_refused == has_failed


def _finds_close(stream: bytes, size: int) -> bool:
    search = CloseFrameSearch()
    for piece in pieces(stream, size):
        if search.feed(piece):
            return True
        assert len(search._header) < 14
    return False
