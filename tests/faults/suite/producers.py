"""Producers that publish with confirms during all faults, and record the results."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

import orjson

from bridge.amqp.publish.publisher import Publisher
from bridge.core.message_options import MessageOptions, Tracking, render_options
from bridge.core.properties import PERSISTENT, Properties
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from tests.faults.suite.history import Ambiguous, Confirmed, History, Invoked

_PUBLISH_TIMEOUT_S: Final = 3.0
_PAUSES_S: Final = (0.05, 0.3)
_BAD_EACH: Final = 100
_LARGE_EACH: Final = 50
_LARGE_BYTES: Final = 4000
_KEYS: Final = 3
_CLEAR_EACH: Final = 10 * _KEYS
_TRACKED_EACH: Final = 3
UNDELIVERED_AFTER_S: Final = 1.0
CAREFUL: Final = "careful"
KEYED: Final = "keyed"
PLAIN: Final = "plain"
PROBE: Final = "probe"
LARGE: Final = "large"
_TRACKING: Final = Tracking(wants_receipt=True, undelivered_after_s=UNDELIVERED_AFTER_S)


@dataclass
class Producer:
    """
    Publishes numbered messages to one user, in order.

    A careful producer gives each message an id and retries until the confirm. Others do
    neither. The messages of one with keys have one of three keys in turn. The first of these
    keys is retained, and cleared by one of ten messages. A producer that asks for receipts does
    so for a third of its messages, and these count as undelivered after a second.
    """

    user: str
    name: str
    is_careful: bool
    publisher: Publisher
    exchange: str
    history: History
    random: random.Random
    mandatory: bool = True
    asks_for_receipts: bool = False
    number: int = 0

    async def run(self, *, per_s: float, stop: asyncio.Event) -> None:
        """
        Publish `per_s` messages a second on average until `stop`.

        After an outage it catches up without pauses.
        """
        start_s = monotonic() - self.number / per_s
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

    async def publish(
        self, *, body_bytes: int | None = None, is_bad: bool | None = None
    ) -> int:
        """
        Publish the next message; a careful producer returns after the confirm.

        `is_bad` says whether its body is invalid. By default, some of a plain producer are.

        Cancellation: the message may have arrived or not.
        """
        self.number += 1
        number = self.number
        if is_bad is None:
            is_bad = not self.is_careful and number % _BAD_EACH == _BAD_EACH // 3
        size = self._size(number) if body_bytes is None else body_bytes
        body = orjson.dumps(
            {"u": self.user, "p": self.name, "n": number, "x": "x" * size}
        )
        if is_bad:
            body = body[:-1]  # invalid JSON, which must be dead-lettered
        key = f"key {number % _KEYS}" if self.name == KEYED else None
        is_cleared = key is not None and number % _CLEAR_EACH == 0
        is_retained = key is not None and number % _KEYS == 0 and not is_cleared
        # Among them are invalid ones and messages that clear their key.
        is_tracked = self.asks_for_receipts and number // _KEYS % _TRACKED_EACH == 2
        self._record(
            Invoked,
            has_id=self.is_careful,
            is_bad=is_bad,
            key=key,
            is_retained=is_retained,
            is_cleared=is_cleared,
            is_tracked=is_tracked,
        )
        properties = Properties(
            delivery_mode=PERSISTENT,
            message_id=f"{self.name}-{number}".encode() if self.is_careful else None,
            correlation_id=f"{self.name}-{number}".encode() if is_tracked else None,
            headers=render_options(
                MessageOptions(
                    key=key,
                    is_retained=is_retained,
                    is_cleared=is_cleared,
                    tracking=_TRACKING if is_tracked else None,
                )
            ),
        )
        while not await self._try(body, properties):
            self._record(Ambiguous)
            if not self.is_careful:
                return number
            await asyncio.sleep(self.random.uniform(*_PAUSES_S))
        self._record(Confirmed)
        return number

    async def _try(self, body: bytes, properties: Properties) -> bool:
        try:
            await self.publisher.publish(
                self.exchange,
                self.user.encode(),
                body=body,
                properties=properties,
                timeout_s=_PUBLISH_TIMEOUT_S,
                mandatory=self.mandatory,
            )
        except (BrokerUnavailableError, PublishRefusedError):
            return False
        return True

    def _size(self, number: int) -> int:
        return _LARGE_BYTES if number % _LARGE_EACH == 0 else self.random.randrange(200)

    def _record(
        self,
        kind: Callable[..., Invoked | Confirmed | Ambiguous],
        **facts: bool | str | None,
    ) -> None:
        t = self.history.t
        self.history.add(kind(t, self.user, self.name, self.number, **facts))


@dataclass(frozen=True, slots=True)
class Producers:
    """
    All producers.

    Attributes:
        regular: A careful and a plain one per user, for the load.
        keyed: One per user, whose messages replace each other.
        probes: One per user, for messages that prove that delivery works.
        large: One per user, for bursts of large messages.

    """

    regular: list[Producer]
    keyed: list[Producer]
    probes: dict[str, Producer]
    large: dict[str, Producer]


def create_producers(
    users: Sequence[str],
    publishers: Sequence[Publisher],
    exchange: str,
    *,
    history: History,
    seed: int,
) -> Producers:
    """Create all producers, distributed over `publishers`, each with its own generator."""
    rng = random.Random(seed)  # noqa: S311 - repeatable, not for secrets

    def producer(number: int, name: str) -> Producer:
        return Producer(
            users[number],
            name,
            is_careful=name != PLAIN,
            publisher=publishers[number % len(publishers)],
            exchange=exchange,
            history=history,
            random=random.Random(rng.getrandbits(32)),  # noqa: S311 - as above
            asks_for_receipts=name in (CAREFUL, PLAIN, KEYED),
        )

    numbers = range(len(users))
    return Producers(
        regular=[producer(n, name) for n in numbers for name in (CAREFUL, PLAIN)],
        keyed=[producer(n, KEYED) for n in numbers],
        probes={users[n]: producer(n, PROBE) for n in numbers},
        large={users[n]: producer(n, LARGE) for n in numbers},
    )
