"""Workers that publish with confirms through whatever happens, and write it all down."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

import orjson

from bridge.amqp.publish.publisher import Publisher
from bridge.core.properties import PERSISTENT, Properties
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from tests.faults.suite.history import Ambiguous, Confirmed, History, Invoked

_PUBLISH_WITHIN_S: Final = 3.0
_PAUSES_S: Final = (0.05, 0.3)
_BAD_EACH: Final = 100
_LARGE_EACH: Final = 50
_LARGE_BYTES: Final = 4000
CAREFUL: Final = "careful"
PLAIN: Final = "plain"
PROBE: Final = "probe"
LARGE: Final = "large"


@dataclass
class Producer:
    """
    Publishes numbers for one user, one after the other.

    A careful one gives each an id and publishes again until it is confirmed; the other
    kind does neither, as a worker that only wants to be rid of it.
    """

    user: str
    name: str
    is_careful: bool
    publisher: Publisher
    exchange: str
    history: History
    random: random.Random
    number: int = 0

    async def run(self, *, per_s: float, stop: asyncio.Event) -> None:
        """
        Publish `per_s` messages a second on average until `stop`.

        What an outage held up is made up for afterwards, without pauses.
        """
        start_s = monotonic()
        while not stop.is_set():
            due_s = start_s + self.number / per_s - monotonic()
            if due_s > 0:
                try:
                    async with asyncio.timeout(due_s + self.random.random() / per_s):
                        await stop.wait()
                except TimeoutError:
                    pass
                else:
                    return
            await self.publish()

    async def publish(self, *, body_bytes: int | None = None) -> int:
        """
        Publish the next number; a careful producer returns when it is confirmed.

        Cancellation: it may have arrived or not.
        """
        self.number += 1
        number = self.number
        is_bad = not self.is_careful and number % _BAD_EACH == _BAD_EACH // 3
        size = self._size(number) if body_bytes is None else body_bytes
        body = orjson.dumps(
            {"u": self.user, "p": self.name, "n": number, "x": "x" * size}
        )
        if is_bad:
            body = body[:-1]  # no JSON any more: it must end among the dead letters
        self._write(Invoked, has_id=self.is_careful, is_bad=is_bad)
        properties = Properties(
            delivery_mode=PERSISTENT,
            message_id=f"{self.name}-{number}".encode() if self.is_careful else None,
        )
        while not await self._try(body, properties):
            self._write(Ambiguous)
            if not self.is_careful:
                return number
            await asyncio.sleep(self.random.uniform(*_PAUSES_S))
        self._write(Confirmed)
        return number

    async def _try(self, body: bytes, properties: Properties) -> bool:
        try:
            await self.publisher.publish(
                self.exchange,
                self.user.encode(),
                body=body,
                properties=properties,
                timeout_s=_PUBLISH_WITHIN_S,
            )
        except (BrokerUnavailableError, PublishRefusedError):
            return False
        return True

    def _size(self, number: int) -> int:
        return _LARGE_BYTES if number % _LARGE_EACH == 0 else self.random.randrange(200)

    def _write(
        self,
        kind: Callable[..., Invoked | Confirmed | Ambiguous],
        **facts: bool,
    ) -> None:
        t = self.history.t
        self.history.add(kind(t, self.user, self.name, self.number, **facts))


@dataclass(frozen=True, slots=True)
class Workers:
    """
    All producers.

    Attributes:
        regular: A careful and a plain one for each user, which make the load.
        probes: One for each user: what it publishes shows that all is alive.
        large: One for each user, for much at a time.

    """

    regular: list[Producer]
    probes: dict[str, Producer]
    large: dict[str, Producer]


def hire(
    users: Sequence[str],
    publishers: Sequence[Publisher],
    exchange: str,
    *,
    history: History,
    seed: int,
) -> Workers:
    """Make all producers, spread over `publishers`, each with dice of its own."""
    dice = random.Random(seed)  # noqa: S311 - chance to be repeated, no secret

    def worker(number: int, name: str) -> Producer:
        return Producer(
            users[number],
            name,
            is_careful=name != PLAIN,
            publisher=publishers[number % len(publishers)],
            exchange=exchange,
            history=history,
            random=random.Random(dice.getrandbits(32)),  # noqa: S311 - as above
        )

    numbers = range(len(users))
    return Workers(
        regular=[worker(n, name) for n in numbers for name in (CAREFUL, PLAIN)],
        probes={users[n]: worker(n, PROBE) for n in numbers},
        large={users[n]: worker(n, LARGE) for n in numbers},
    )
