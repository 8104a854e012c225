"""
The control channel between the supervisor and one worker: a socket pair, one line a message.

Signals would not do. A service manager or a terminal often signals every process of a bridge,
and a worker could not tell a repeated signal from the order to stop at once. A socket also
closes when its other end dies, so a worker notices that its supervisor is gone.
"""

import asyncio
from enum import Enum


class ControlMessage(Enum):
    """A line on the channel."""

    LISTENING = b"listening\n"  # worker: clients can connect
    DRAIN = b"drain\n"  # supervisor: drain and exit
    STOP_NOW = b"insist\n"  # supervisor: exit without draining
    RELOAD = b"reload\n"  # supervisor: read the settings again


async def receive(reader: asyncio.StreamReader) -> ControlMessage | None:
    """
    Wait for the next message; ``None`` if the channel is closed.

    Cancellation:
        Safe.

    """
    try:
        return parse_message(await reader.readline())
    except ConnectionError:  # the other end closed with unread messages of ours
        return None


def parse_message(line: bytes) -> ControlMessage | None:
    """Return the message of a line; ``None`` for an empty or incomplete last line."""
    return ControlMessage(line) if line.endswith(b"\n") else None
