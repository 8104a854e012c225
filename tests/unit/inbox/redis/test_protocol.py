"""Answers and pushes on one connection: nobody gets what belongs to somebody else."""

import asyncio
from typing import cast

import pytest

from bridge.inbox.redis.protocol import Link, LinkLostError

SUBSCRIBED = b">3\r\n$10\r\nssubscribe\r\n$3\r\nann\r\n:1\r\n"
ENDED = b">3\r\n$12\r\nsunsubscribe\r\n$3\r\nann\r\n:0\r\n"
MOVED = b"-MOVED 1 10.0.0.1:6379\r\n"


class Wire(asyncio.Transport):
    """Where a link writes; it ends like a connection."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._is_closing = False
        link.connection_made(self)

    def write(self, data: object) -> None:
        """Take what is written, and forget it."""

    def is_closing(self) -> bool:
        """Whether it was cut."""
        return self._is_closing

    def abort(self) -> None:
        """Cut it."""
        self._is_closing = True
        asyncio.get_running_loop().call_soon(self._link.connection_lost, None)


async def test_a_subscription_is_confirmed_between_the_answers_to_questions() -> None:
    """The ordinary course: pushes are no answers."""
    pushed: list[object] = []
    link = Link(pushed.extend)
    Wire(link)
    first = link.call(b"GET", b"1")
    link.send(b"SSUBSCRIBE", b"ann")
    second = link.call(b"GET", b"2")
    link.send(b"SUNSUBSCRIBE", b"ann")
    third = link.call(b"GET", b"3")

    link.data_received(b"+1\r\n" + SUBSCRIBED + b"+2\r\n" + ENDED + b"+3\r\n")

    assert [first.result(), second.result(), third.result()] == [b"1", b"2", b"3"]
    assert [cast("list[bytes]", push)[0] for push in pushed] == [
        b"ssubscribe",
        b"sunsubscribe",
    ]
    assert not link.lost.done()


@pytest.mark.parametrize("what", [SUBSCRIBED, MOVED])
async def test_a_subscription_that_the_node_ended_by_itself_ends_the_connection(
    what: bytes,
) -> None:
    """The slot went away, or went and came back: on this connection nothing more comes."""
    link = Link()
    Wire(link)
    link.send(b"SSUBSCRIBE", b"tom")
    question = link.call(b"GET", b"1")

    link.data_received(ENDED + what + b"+1\r\n")

    with pytest.raises(LinkLostError, match="ended a subscription"):
        await question


async def test_a_node_that_ends_what_is_just_given_up_mixes_nothing_up() -> None:
    """Its word is taken for the confirmation; the error for that has no place left."""
    link = Link()
    Wire(link)
    link.send(b"SUNSUBSCRIBE", b"ann")
    questions = [link.call(b"PING"), link.call(b"GET", b"1"), link.call(b"GET", b"2")]

    link.data_received(ENDED + MOVED + b"+PONG\r\n+1\r\n+2\r\n")

    assert "MOVED" in str(await questions[0])
    for question in questions[1:]:
        with pytest.raises(LinkLostError, match="MOVED"):
            await question
