"""
Socket.IO packets: strict parsing of those from clients, rendering of the bridge's own.

Socket.IO protocol version 5. The bridge accepts CONNECT, DISCONNECT and EVENT. It never
requests acknowledgements from clients and accepts no binary data: a packet that announces
attachments would make the server buffer them without a limit, so it is refused before the
first attachment.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import orjson

from bridge.core.json_text import parse_json_exactly
from bridge.enums import Refusal

_DIGITS: Final = re.compile(r"[0-9]{1,100}")


class PacketType(IntEnum):
    """The packet types that a client may send."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3


# Not by `int`, which accepts the digits of all scripts.
_TYPES: Final = {str(each.value): each for each in PacketType}


@dataclass(frozen=True, slots=True)
class Packet:
    """
    One packet from a client.

    Attributes:
        type: The packet type.
        namespace: `/` unless the packet names another one.
        id: Set if the client expects a reply.
        data: Decoded JSON; `None` if the packet has no data.

    """

    type: PacketType
    namespace: str
    id: int | None
    data: object


def parse_packet(text: str) -> Packet:
    """
    Parse `text`, the content of an Engine.IO message.

    Raises:
        ValueError: If a client may not send this packet.

    """
    try:
        packet_type = _TYPES[text[:1]]
    except KeyError:
        message = f"packet type {text[:1]!r} is not accepted"
        raise ValueError(message) from None
    rest = text[1:]
    namespace = "/"
    if rest.startswith("/"):
        namespace, _, rest = rest.partition(",")
        namespace = namespace.partition("?")[0]
    match = _DIGITS.match(rest)
    packet_id = int(match[0]) if match else None
    if match:
        rest = rest[match.end() :]
    data = parse_json_exactly(rest) if rest else None
    if packet_type is PacketType.EVENT and not (
        isinstance(data, list) and data and isinstance(data[0], str)
    ):
        message = "the data of an event is not a list that starts with its name"
        raise ValueError(message)
    return Packet(packet_type, namespace, packet_id, data)


def connect_reply(sid: str, recovery_id: str | None) -> str:
    """Return the packet that accepts a CONNECT; `pid` enables the client's recovery."""
    data = {"sid": sid} if recovery_id is None else {"sid": sid, "pid": recovery_id}
    return "0" + orjson.dumps(data).decode()


def connect_error(namespace: str, message: str, data: dict[str, object]) -> str:
    """Return the packet that refuses a CONNECT: `err.message` and `err.data`."""
    prefix = "" if namespace == "/" else f"{namespace},"
    return f"4{prefix}" + orjson.dumps({"message": message, "data": data}).decode()


def event(name: str, data: object) -> str:
    """Return an event packet with one argument."""
    return "2" + orjson.dumps([name, data]).decode()


def reply(packet_id: int, data: object) -> str:
    """Return the reply to the client's event with that id."""
    return f"3{packet_id}" + orjson.dumps([data]).decode()


def is_binary(text: str) -> bool:
    """Return whether a packet announces binary attachments (types 5 and 6)."""
    return text.startswith(("5", "6"))


def binary_refusal() -> bytes:
    """
    Return the refusal of a CONNECT, as a client with the msgpack parser reads it.

    It sends all packets in binary, and can read no other answer.
    """
    code = Refusal.BINARY_NOT_SUPPORTED
    return b"\x83%b\x04%b%b%b\x82%b%b%b\x82%b%b%b\xc2" % (
        _msgpack("type"),
        _msgpack("nsp"),
        _msgpack("/"),
        _msgpack("data"),
        _msgpack("message"),
        _msgpack(code.explanation),
        _msgpack("data"),
        _msgpack("code"),
        _msgpack(code),
        _msgpack("temporary"),
    )


def _msgpack(text: str) -> bytes:
    return b"\xd9%c%b" % (len(text), text.encode())


# The stock client does not reconnect automatically after this packet.
DISCONNECT_PACKET: Final = "1"
