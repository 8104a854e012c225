"""
Questions between bridges that share a Redis, over its publish/subscribe channels.

All bridges listen to one channel for questions, and each to one of its own for answers.
There is no list of members: PUBLISH returns how many bridges received a question, and the
sender waits a moment for that many answers. This module does not interpret the questions.

Delivering messages does not depend on it. If Redis is away, or a bridge hangs, operators
get a partial answer that is marked as such.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Final

import orjson
import structlog

from bridge.core.fleet import FleetAnswers
from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.connection import PersistentConnection
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.protocol import MISSING, RedisConnection
from bridge.inbox.redis.topology import find_servers

log = structlog.get_logger(__name__)

Question = Mapping[str, Any]
Responder = Callable[[Question], Awaitable[object]]

# Questions that wait for an answer of ours. Operators ask by hand, so more of them come
# from a fault.
_QUESTIONS_MAX: Final = 64
# Answers to one question of ours that are not processed yet.
_ANSWERS_MAX: Final = 1000


class RedisFleet:
    """The other bridges, as far as they listen to the same Redis."""

    def __init__(
        self, address: RedisAddress, *, namespace: str, within_s: float = 1.0
    ) -> None:
        """
        Create it without connecting.

        Args:
            address: The server, Sentinels or cluster.
            namespace: The first part of the names of the channels.
            within_s: How long to wait for answers.

        """
        # The number of the database is in the name, because databases do not separate
        # channels.
        self._all = f"{namespace}/{address.db}:fleet"
        self._own = f"{self._all}:{secrets.token_hex(8)}"
        # In a cluster PUBLISH counts only the listeners of one node.
        self._is_counted = address.kind != "cluster"
        self._within_s = within_s
        self._address = address
        self._connection = PersistentConnection(
            address, self._find_host, on_push=self._on_push, prepare=self._prepare
        )
        self._responder: Responder | None = None
        self._questions: asyncio.Queue[bytes] = asyncio.Queue(_QUESTIONS_MAX)
        self._numbers = count(1)
        self._pending: dict[int, asyncio.Queue[Any]] = {}

    def replace_login(self, address: RedisAddress) -> None:
        """Use the login and the TLS files of `address` for new connections."""
        self._address = address
        self._connection.replace_login(address)

    def serve(self, responder: Responder) -> None:
        """Answer the others' questions by `responder`, one after the other."""
        self._responder = responder

    async def run(self) -> None:
        """
        Listen and answer until cancelled.

        Cancellation:
            Safe at any time: a question without an answer counts as unanswered.

        """
        if MISSING is not None:
            return  # opening the inbox fails with a better error
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._connection.run(), name="fleet connection")
            while True:
                await self._answer(await self._questions.get())

    # --- asking

    async def ask(self, question: Question) -> FleetAnswers:
        """
        Ask all other bridges, and wait until all have answered or the time is over.

        Returns:
            The answers in time; none if Redis is away. Never raises.

        """
        number = next(self._numbers)
        incoming = self._pending[number] = asyncio.Queue(_ANSWERS_MAX)
        body = {"from": self._own, "number": number, "question": question}
        answers: list[Any] = []
        others: int | None = None
        try:
            async with asyncio.timeout(self._within_s):
                # The count includes this bridge, which listens to the channel, too.
                others = await self._publish(self._all, body) - 1
                while not self._is_counted or len(answers) < others:
                    answers.append(await incoming.get())
        except TimeoutError:
            pass
        except (StoreUnavailableError, RefusedByRedisError) as exc:
            log.warning("fleet.question_failed", error=str(exc))
        finally:
            del self._pending[number]
        if others is None or not self._is_counted:
            return FleetAnswers(answers, None)
        return FleetAnswers(answers, max(0, others - len(answers)))

    async def _publish(self, channel: str, body: Question) -> int:
        return int(await self._connection.ask(b"PUBLISH", channel, orjson.dumps(body)))

    # --- listening

    async def _find_host(self) -> Host:
        """Return any server: all nodes of a cluster forward what one of them publishes."""
        return next(iter(await find_servers(self._address)))

    async def _prepare(self, connection: RedisConnection) -> None:
        # A later PUBLISH on this connection comes after it, so its count includes us.
        connection.send(b"SUBSCRIBE", self._all, self._own)

    def _on_push(self, pushes: Sequence[Sequence[Any]]) -> None:
        own = self._own.encode()
        for push in pushes:
            match push:
                case [b"message", channel, body] if channel == own:
                    self._take_answer(body)
                case [b"message", _, body] if not self._questions.full():
                    self._questions.put_nowait(body)

    def _take_answer(self, body: bytes) -> None:
        match _parsed(body):
            case {"number": int(number), "answer": answer} if number in self._pending:
                with suppress(asyncio.QueueFull):
                    self._pending[number].put_nowait(answer)

    async def _answer(self, body: bytes) -> None:
        match _parsed(body):
            case {
                "from": str(sender),
                "number": int(number),
                "question": dict(question),
            }:
                if sender == self._own or self._responder is None:
                    return
                reply = {"number": number, "answer": await self._responder(question)}
            case _:
                return
        try:
            await self._publish(sender, reply)
        except (StoreUnavailableError, RefusedByRedisError) as exc:
            log.debug("fleet.answer_failed", error=str(exc))


def _parsed(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None  # not from a bridge
