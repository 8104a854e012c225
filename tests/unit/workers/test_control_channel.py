"""Messages between the supervisor and a worker."""

import asyncio
import socket

import pytest

from bridge.workers.control_channel import ControlMessage, parse_message, receive


@pytest.mark.parametrize("message", list(ControlMessage))
def test_a_line_is_parsed_to_its_message(message: ControlMessage) -> None:
    """Both ends use the same enum."""
    assert parse_message(message.value) is message


@pytest.mark.parametrize("line", [b"", b"dra"])
def test_an_incomplete_line_is_the_end_of_the_channel(line: bytes) -> None:
    """A supervisor that was killed may have sent half a message."""
    assert parse_message(line) is None


async def test_a_reset_is_the_end_of_the_channel() -> None:
    """The kernel reports a reset if the other end closes with unread messages."""
    own_end, other_end = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=own_end)
    writer.write(ControlMessage.RELOAD.value)
    other_end.sendall(ControlMessage.LISTENING.value)
    assert await receive(reader) is ControlMessage.LISTENING

    other_end.close()

    assert await receive(reader) is None
    writer.close()
