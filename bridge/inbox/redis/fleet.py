"""
How bridges that share a Redis ask each other something, and answer.

One channel that all of them hear, and one for each that hears answers. There is no list
of members: Redis says how many heard a question, and so many answers are waited for, for a
moment. What is asked and what it means is none of this module's business.

Nothing here is needed for carrying messages. When Redis is away, or a bridge hangs,
operators see a part, and are told that it is one.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final

import orjson
import structlog

from bridge.core.fleet import FleetAnswers
from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.connection import KeptLink, RefusedByRedisError
from bridge.inbox.redis.protocol import MISSING, Link
from bridge.inbox.redis.servers import find_servers

log = structlog.get_logger(__name__)

Question = Mapping[str, Any]
Answer = Callable[[Question], Awaitable[object]]

WITHIN_S: Final = 1.0
# Operators ask by hand; more at a time come from something that is broken.
_QUESTIONS_MAX: Final = 64


class RedisFleet:
    """The other bridges, as far as they hear the same Redis."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        namespace: str,
        within_s: float = WITHIN_S,
    ) -> None:
        """
        Know where Redis is, and go nowhere yet.

        Args:
            address: Of the server.
            namespace: What the channels' names begin with; databases do not keep them apart.
            within_s: How long answers are waited for.

        """
        self._all = f"{namespace}/{address.db}:fleet"
        self._mine = f"{self._all}:{secrets.token_hex(8)}"
        # A node of a cluster knows only its own listeners.
        self._is_counted = address.kind != "cluster"
        self._within_s = within_s
        self._address = address
        self._kept = KeptLink(
            address, self._find, pushed=self._pushed, greet=self._greet
        )
        self._answer: Answer | None = None
        self._questions: asyncio.Queue[bytes] = asyncio.Queue(_QUESTIONS_MAX)
        self._numbers = count(1)
        self._asked: dict[int, _Asked] = {}

    def serve(self, answer: Answer) -> None:
        """Answer the others' questions by `answer`, one after the other."""
        self._answer = answer

    async def run(self) -> None:
        """
        Listen and answer until cancelled.

        Cancellation:
            Safe at any time: a question without an answer counts as silence.

        """
        if MISSING is not None:
            return  # the inbox ends the start, and says so better
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._kept.run(), name="fleet connection")
            while True:
                await self._reply(await self._questions.get())

    # --- asking

    async def ask(self, question: Question) -> FleetAnswers:
        """
        Ask all others, and wait for as many answers as there were listeners.

        Returns:
            What came within the time that there is; nothing if Redis is away. Never raises.

        """
        number = next(self._numbers)
        asked = self._asked[number] = _Asked()
        words = {"from": self._mine, "number": number, "question": question}
        others: int | None = None
        try:
            async with asyncio.timeout(self._within_s):
                others = await self._publish(self._all, words) - 1
                await asked.until(others if self._is_counted else None)
        except TimeoutError:
            pass
        except (StoreUnavailableError, RefusedByRedisError) as exc:
            log.warning("fleet.not_asked", error=str(exc))
        finally:
            del self._asked[number]
        if others is None or not self._is_counted:
            return FleetAnswers(asked.answers, None)
        return FleetAnswers(asked.answers, max(0, others - len(asked.answers)))

    async def _publish(self, channel: str, words: Question) -> int:
        body = orjson.dumps(words)
        return int(await self._kept.ask(b"PUBLISH", channel, body))

    # --- hearing

    async def _find(self) -> Host:
        """Any server of a cluster does: what is published at one is heard at all."""
        return next(iter(await find_servers(self._address)))

    async def _greet(self, link: Link) -> None:
        # What is sent later on this connection comes after it: we always count ourselves.
        link.send(b"SUBSCRIBE", self._all, self._mine)

    def _pushed(self, pushes: Sequence[Sequence[Any]]) -> None:
        mine = self._mine.encode()
        for push in pushes:
            match push:
                case [b"message", channel, body] if channel == mine:
                    self._take(body)
                case [b"message", _, body] if not self._questions.full():
                    self._questions.put_nowait(body)

    def _take(self, body: bytes) -> None:
        match _parsed(body):
            case {"number": int(number), "answer": answer} if number in self._asked:
                self._asked[number].take(answer)

    async def _reply(self, body: bytes) -> None:
        match _parsed(body):
            case {
                "from": str(sender),
                "number": int(number),
                "question": dict(question),
            }:
                if sender == self._mine or self._answer is None:
                    return
                words = {"number": number, "answer": await self._answer(question)}
            case _:
                return
        try:
            await self._publish(sender, words)
        except (StoreUnavailableError, RefusedByRedisError) as exc:
            log.debug("fleet.not_answered", error=str(exc))


class _Asked:
    """A question under way: what came, and whether that is all."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self._came = asyncio.Event()

    def take(self, answer: object) -> None:
        self.answers.append(answer)
        self._came.set()

    async def until(self, wanted: int | None) -> None:
        """Wait for so many answers; for ever if it is not known how many there will be."""
        while wanted is None or len(self.answers) < wanted:
            self._came.clear()
            await self._came.wait()


def _parsed(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None  # not from a bridge
