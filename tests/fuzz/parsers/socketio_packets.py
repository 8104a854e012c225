"""Socket.IO packets and what clients put into them, against python-socketio and json."""

import json
from typing import Final

import orjson
from socketio.packet import Packet as TheirPacket

from bridge.core.identity import ConnectOptions, parse_connect_auth
from bridge.core.message import user_problem
from bridge.core.packets import (
    PacketType,
    connect_error,
    is_binary,
    parse_packet,
    reply,
)
from bridge.core.position import Position, parse_position
from bridge.errors import RefusedError

MODULES: Final = (
    "bridge.core.packets",
    "bridge.core.json_text",
    "bridge.core.identity",
    "bridge.core.position",
)
SEEDS: Final = (
    b"0",
    b'0{"token":"a.b.c","acks":"manual","position":"0123456789abcdef-7"}',
    b'0{"pid":"0123456789abcdef-7.abc","offset":"0123456789abcdef-9"}',
    b'0/admin?x=1,{"token":null}',
    b"1",
    b'2["ack","0123456789abcdef-7"]',
    b'217["join",{"username":"ann"}]',
    b'2/x,3["bridge:refresh","\\ud800",1e5,[null,true]]',
    b'51-["a",{"_placeholder":true,"num":0}]',
    '٢["a"]'.encode(),  # found: any digit of Unicode was a packet type
)


def fuzz_one(data: bytes) -> None:
    """Only ValueError and RefusedError are raised; events are read as python-socketio does."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # no text frame
    is_binary(text)
    try:
        packet = parse_packet(text)
    except ValueError:
        return
    assert text[0] in "0123"
    connect_error(packet.namespace, "x", {}).encode()
    if packet.id is not None:
        reply(packet.id, {"ok": True}).encode()
    if packet.type is PacketType.EVENT:
        assert isinstance(packet.data, list)
        _compare(text, packet.namespace, packet.id, packet.data)
        for argument in packet.data[1:]:
            _check_position(argument)
            if isinstance(argument, str):
                user_problem(argument)
    if packet.type is PacketType.CONNECT:
        try:
            options = parse_connect_auth(packet.data)
        except RefusedError:
            return
        assert isinstance(options, ConnectOptions)
        _check_position(options.recovery_id)


def _check_position(value: object) -> None:
    try:
        position = parse_position(value)
    except ValueError:
        return
    assert isinstance(position, Position)
    assert parse_position(str(position)) == position
    assert 0 <= position.offset < 1 << 63
    orjson.dumps(position.epoch)


def _compare(
    text: str, namespace: str, packet_id: int | None, data: list[object]
) -> None:
    try:
        theirs = TheirPacket(encoded_packet=text)
    except RecursionError:
        return  # the json module is the first to give up
    except ValueError as exc:
        assert str(exc) == "Integer is too large"  # noqa: PT017 - a limit of that library
        return
    assert (theirs.namespace or "/") == namespace
    assert theirs.id == packet_id
    assert _comparable(theirs.data) == _comparable(data)


def _comparable(value: object) -> str:
    """Return text that does not tell a large integer from a float, which orjson reads."""
    try:
        return json.dumps(
            json.loads(json.dumps(value), parse_int=float), sort_keys=True
        )
    except RecursionError:
        return ""
