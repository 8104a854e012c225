"""Replies and pushes on one connection: no command gets the reply to another one."""

import asyncio
from typing import cast

import pytest

from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.protocol import RedisConnection, RedisConnectionLostError

SUBSCRIBED = b">3\r\n$10\r\nssubscribe\r\n$3\r\nann\r\n:1\r\n"
UNSUBSCRIBED = b">3\r\n$12\r\nsunsubscribe\r\n$3\r\nann\r\n:0\r\n"
MOVED = b"-MOVED 1 10.0.0.1:6379\r\n"


class FakeTransport(asyncio.Transport):
    """Discards what the connection writes, and ends it as a socket does."""

    def __init__(self, connection: RedisConnection) -> None:
        super().__init__()
        self._connection = connection
        self._is_closing = False
        connection.connection_made(self)

    def write(self, data: object) -> None:
        """Discard the data."""

    def is_closing(self) -> bool:
        """Return whether the connection was aborted."""
        return self._is_closing

    def abort(self) -> None:
        """Report the end of the connection soon, as asyncio does."""
        self._is_closing = True
        loop = asyncio.get_running_loop()
        loop.call_soon(self._connection.connection_lost, None)


async def test_confirmations_between_replies_leave_the_replies_in_order() -> None:
    """A push is not the reply to a command."""
    pushed: list[object] = []
    connection = RedisConnection("redis", on_push=pushed.extend)
    FakeTransport(connection)
    first = connection.call(b"GET", b"1")
    connection.send(b"SSUBSCRIBE", b"ann")
    second = connection.call(b"GET", b"2")
    connection.send(b"SUNSUBSCRIBE", b"ann")
    third = connection.call(b"GET", b"3")

    connection.data_received(
        b"+1\r\n" + SUBSCRIBED + b"+2\r\n" + UNSUBSCRIBED + b"+3\r\n"
    )

    assert [first.result(), second.result(), third.result()] == [b"1", b"2", b"3"]
    assert [cast("list[bytes]", push)[0] for push in pushed] == [
        b"ssubscribe",
        b"sunsubscribe",
    ]
    assert not connection.lost.done()


async def test_a_command_that_cannot_be_encoded_leaves_the_replies_in_order() -> None:
    """Nothing is sent then, so no reply may be expected."""
    connection = RedisConnection("redis")
    FakeTransport(connection)
    first = connection.call(b"GET", b"1")
    with pytest.raises(UnicodeEncodeError):
        connection.call(b"GET", "\ud800")
    with pytest.raises(UnicodeEncodeError):
        await connection.ask_all([(b"GET", b"2"), (b"GET", "\ud800")])
    with pytest.raises(UnicodeEncodeError):
        connection.send(b"SSUBSCRIBE", "\ud800")
    async with asyncio.TaskGroup() as tasks:
        many = tasks.create_task(connection.ask_all([(b"GET", b"3"), (b"GET", b"4")]))
        await asyncio.sleep(0)

        connection.data_received(b"+1\r\n+3\r\n+4\r\n")

    assert [first.result(), *many.result()] == [b"1", b"3", b"4"]


async def test_many_commands_after_the_end_of_the_connection_fail() -> None:
    """As a single one does."""
    connection = RedisConnection("redis")
    FakeTransport(connection)
    connection.abort("a test")

    with pytest.raises(StoreUnavailableError, match="a test"):
        await connection.ask_all([(b"GET", b"1"), (b"GET", b"2")])


@pytest.mark.parametrize("reply", [SUBSCRIBED, MOVED])
async def test_a_subscription_ended_by_the_node_ends_the_connection(
    reply: bytes,
) -> None:
    """The slot moved away, and possibly back: this connection receives nothing more."""
    connection = RedisConnection("redis")
    FakeTransport(connection)
    connection.send(b"SSUBSCRIBE", b"tom")
    command = connection.call(b"GET", b"1")

    connection.data_received(UNSUBSCRIBED + reply + b"+1\r\n")

    with pytest.raises(RedisConnectionLostError, match="ended a subscription"):
        await command


async def test_a_node_that_ends_a_subscription_during_our_unsubscribe_confuses_no_replies() -> (
    None
):
    """Its push counts as our confirmation; its error reply then belongs to no command."""
    connection = RedisConnection("redis")
    FakeTransport(connection)
    connection.send(b"SUNSUBSCRIBE", b"ann")
    commands = [
        connection.call(b"PING"),
        connection.call(b"GET", b"1"),
        connection.call(b"GET", b"2"),
    ]

    connection.data_received(UNSUBSCRIBED + MOVED + b"+PONG\r\n+1\r\n+2\r\n")

    assert "MOVED" in str(await commands[0])
    for command in commands[1:]:
        with pytest.raises(RedisConnectionLostError, match="MOVED"):
            await command
