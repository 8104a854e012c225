"""Turns of the event loop: how much work of connecting clients begins in one of them."""

import asyncio
from functools import partial

from bridge.sockets.engineio.loop_turns import FirstBytes, LoopTurns


async def test_other_work_gets_its_turn_between_calls() -> None:
    """A message needs several turns, and would wait for all calls otherwise."""
    turns = LoopTurns(per_turn=2)
    done: list[object] = []

    for number in range(5):
        turns.call(partial(done.append, number))
    asyncio.get_running_loop().call_soon(done.append, "other")

    assert done == [0, 1]
    assert turns.is_behind
    await asyncio.sleep(0)
    assert done == [0, 1, 2, 3, "other"]
    await asyncio.sleep(0)
    assert done == [0, 1, 2, 3, "other", 4]
    assert not turns.is_behind


async def test_a_later_call_does_not_overtake_those_that_wait() -> None:
    """The oldest connection is served first."""
    turns = LoopTurns(per_turn=1)
    done: list[int] = []

    for number in range(3):
        turns.call(partial(done.append, number))
    await asyncio.sleep(0)
    turns.call(partial(done.append, 3))
    for _ in range(3):
        await asyncio.sleep(0)

    assert done == [0, 1, 2, 3]


async def test_calls_after_one_that_fails_are_made() -> None:
    """Or one connection that fails would stop all new ones."""
    turns = LoopTurns(per_turn=2)
    done: list[int] = []
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)

    for number in range(6):
        turns.call(
            partial(done.remove, number)
            if number == 2
            else partial(done.append, number)
        )
    for _ in range(4):
        await asyncio.sleep(0)

    assert done == [0, 1, 3, 4, 5]


class Client(asyncio.Transport):
    """The transport of a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol | None = None
        self.has_paused = False
        self.is_closed = False

    def abort(self) -> None:
        """Note it."""
        self.is_closed = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Keep it."""
        self.protocol = protocol

    def pause_reading(self) -> None:
        """Note it."""
        self.has_paused = True

    def resume_reading(self) -> None:
        """Note it."""
        self.has_paused = False

    def is_closing(self) -> bool:
        """Return whether the test has closed it."""
        return self.is_closed


class Received(asyncio.Protocol):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.data = b""
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.data += data
        assert data != b"first, bad"

    def connection_lost(self, exc: Exception | None) -> None:
        """Note it."""
        assert exc is None
        self.is_lost = True


def waiting_connection() -> tuple[FirstBytes, Client, Received]:
    """Return a connection whose first bytes wait for the next turn."""
    turns = LoopTurns(per_turn=1)
    turns.call(lambda: None)
    client, received = Client(), Received()
    connection = FirstBytes(received, turns)
    connection.connection_made(client)
    connection.data_received(b"first")
    return connection, client, received


async def test_bytes_that_follow_are_not_read_before_the_first_are_processed() -> None:
    """A client that sends without waiting for an answer would fill the memory."""
    connection, client, received = waiting_connection()

    connection.data_received(b", second")
    assert client.has_paused
    assert received.data == b""
    await asyncio.sleep(0)

    assert received.data == b"first, second"
    assert client.protocol is received
    assert not client.has_paused


async def test_a_connection_that_is_closed_while_it_waits_is_not_served() -> None:
    """Its protocol has counted it as lost already."""
    connection, client, received = waiting_connection()

    client.is_closed = True
    connection.connection_lost(None)
    await asyncio.sleep(0)

    assert received.is_lost
    assert received.data == b""


async def test_a_connection_that_fails_when_its_turn_comes_is_aborted() -> None:
    """The loop does that only if it calls the protocol itself; the connection would stay."""
    connection, client, _ = waiting_connection()
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda *failure: failures.append(failure)
    )

    connection.data_received(b", bad")
    await asyncio.sleep(0)

    assert failures
    assert client.is_closed
