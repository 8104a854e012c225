"""
Socket.io packets from a page, read strictly, and the bridge's answers.

Protocol: socket.io protocol version 5. The bridge takes CONNECT, DISCONNECT and EVENT.
It asks pages for no acknowledgements and wants no binary: a packet that announces
attachments makes a server collect them without bound (traps 1.2, row 4), so it is
refused before a single one is read.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import orjson

_DIGITS: Final = re.compile(r"[0-9]{1,16}")


class PacketType(IntEnum):
    """The packets that a page may send."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3


@dataclass(frozen=True, slots=True)
class Packet:
    """
    One packet from a page.

    Attributes:
        type: What it is.
        namespace: `/` unless the page said otherwise.
        id: Set if the page wants an answer.
        data: Decoded JSON; `None` if there was none.

    """

    type: PacketType
    namespace: str
    id: int | None
    data: object


def parse_packet(text: str) -> Packet:
    """
    Read `text`, the inside of an engine.io message.

    Raises:
        ValueError: If it is no packet that a page may send.

    """
    try:
        kind = PacketType(int(text[:1]))
    except ValueError:
        message = f"packet type {text[:1]!r} is not for the bridge"
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
    data: object = orjson.loads(rest) if rest else None
    if kind is PacketType.EVENT and not (
        isinstance(data, list) and data and isinstance(data[0], str)
    ):
        message = "an event is a list that begins with its name"
        raise ValueError(message)
    return Packet(kind, namespace, packet_id, data)


def connect_reply(sid: str, recovery_id: str | None) -> str:
    """Return the packet that lets a window in; `pid` switches recovery on."""
    data = {"sid": sid} if recovery_id is None else {"sid": sid, "pid": recovery_id}
    return "0" + orjson.dumps(data).decode()


def connect_error(namespace: str, message: str, data: dict[str, object]) -> str:
    """Return the packet that refuses a window; a page sees `err.message`, `err.data`."""
    where = "" if namespace == "/" else f"{namespace},"
    return f"4{where}" + orjson.dumps({"message": message, "data": data}).decode()


def event(name: str, data: object) -> str:
    """Return the packet of one of the bridge's own events."""
    return "2" + orjson.dumps([name, data]).decode()


def reply(packet_id: int, data: object) -> str:
    """Return the answer to the page's event with that id."""
    return f"3{packet_id}" + orjson.dumps([data]).decode()


# Told this, the stock client does not come back by itself.
DISCONNECT_PACKET: Final = "1"
