"""
A bridge whose inbox nobody shares takes the messages of its namespace alone, or waits.

Two inboxes on one namespace would split each user's messages: what one bridge stored, no
window at the other ever sees. So a bridge with `sqlite:` or `memory:` takes nothing while
any other bridge does, and bridges that share an inbox take nothing while it does. Whoever
came first stays; the other is not ready, says why, looks again, and takes over when the
first has gone, as in a restart.

There are two tokens (token.py). Who has an inbox of its own holds the one, `<ns>.alone`,
before it takes messages; those that share one stand in line for the other, `<ns>.shared`.
Each takes its own first and then looks at the other, so of two that come in one moment at
least one sees the other.

A bridge older than this, or of another program, tells of itself by neither, and looks at none.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from bridge.amqp.connection import BrokerAddress, BrokerConnection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.lock_message import Token
from bridge.core.broker_names import BrokerNames
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

ALONE: Final = "alone"
SHARED: Final = "shared"
_LOOK_EACH_S: Final = 0.5
# Well within the broker's ack timeout, half an hour by default.
_RENEW_EACH_S: Final = 60.0
# Two that come in one moment give way to each other, and try again.
_IN_VAIN: Final = 4
_NOT_GIVEN: Final = (
    "the broker does not give this bridge the message of queue {}: is it overloaded, or "
    "does a policy take messages out of that queue?"
)
_OWN_INBOX: Final = (
    "another bridge takes the messages of {}, and its inbox is its own: this one takes "
    "none before that has gone"
)
_SHARED_INBOX: Final = (
    "others take the messages of {}, and this bridge's inbox is its own: it takes none "
    "before they have gone; BRIDGE_INBOX=redis://... is shared"
)


class Neighbours:
    """
    The other bridges of a namespace, seen over one connection.

    All methods raise `BrokerUnavailableError` if the broker is away or too slow. Cancelling
    is safe.

    Args:
        connection: Lives on. What was claimed lasts as long.
        names: Of the namespace.
        address: Where the broker is.
        has_own_inbox: Whether nobody shares the inbox of who looks.

    """

    def __init__(
        self,
        connection: BrokerConnection[FrameReader],
        names: BrokerNames,
        *,
        address: BrokerAddress,
        has_own_inbox: bool,
    ) -> None:
        self._names = names
        self._has_own_inbox = has_own_inbox
        self._alone = Token(connection, names.token(ALONE), address=address)
        self._shared = Token(connection, names.token(SHARED), address=address)

    @property
    def _ours(self) -> Token:
        return self._alone if self._has_own_inbox else self._shared

    async def wait_until_gone(
        self, *, stopping: asyncio.Event, tell: Callable[[str | None], None]
    ) -> None:
        """
        Wait until nobody takes messages that we must not share, or until `stopping`.

        Args:
            stopping: Ends the wait, whoever is there.
            tell: Told who is in the way, and ``None`` in the end.

        Raises:
            TopologyError: If something else has the name of a token's queue.

        """
        told: str | None = None
        in_vain = 0
        try:
            while not stopping.is_set():
                problem = await self.in_the_way()
                if problem is None and await self._claim():
                    break
                in_vain += problem is None
                if in_vain == _IN_VAIN:
                    problem = _NOT_GIVEN.format(self._ours.queue)
                if problem not in (None, told):
                    told = problem
                    tell(problem)
                    log.warning("intake.waits_for_others", problem=problem)
                with suppress(TimeoutError):
                    # With jitter, or two that see each other would do so again.
                    async with asyncio.timeout(_LOOK_EACH_S * (0.5 + random.random())):  # noqa: S311 - no secret
                        await stopping.wait()
        finally:
            tell(None)
        if told is not None and not stopping.is_set():
            log.info("intake.others_are_gone")

    async def in_the_way(self) -> str | None:
        """Say who takes messages that we, who take none yet, must not share."""
        if await self._alone.is_held():
            return _OWN_INBOX.format(self._names.namespace)
        if self._has_own_inbox and await self._shared.is_held():
            return _SHARED_INBOX.format(self._names.namespace)
        return None

    async def is_one_alone(self) -> bool:
        """Say whether a bridge takes all messages; it may be ours."""
        return await self._alone.is_held()

    async def _claim(self) -> bool:
        """
        Tell of us, and look once more.

        Returns:
            False if somebody else came in the same moment; nothing is told then.

        """
        await self._ours.stand_in_line()
        if self._has_own_inbox:
            is_told, other = await self._alone.is_given(), self._shared
        else:
            # Whoever of us holds it: it tells of all.
            is_told = await self._shared.is_held() or await self._shared.is_given()
            other = self._alone
        is_so = is_told and not await other.is_held()
        if not is_so:
            await self._ours.leave()
        return is_so

    async def keep_apart(self) -> None:
        """
        Watch that what tells of us holds; for ever.

        Raises:
            BrokerUnavailableError: If it does not (its queue was deleted). What we consume
                is given up for it, and begun anew.

        """
        while True:
            try:
                async with asyncio.timeout(_RENEW_EACH_S):
                    await self._watch()
            except TimeoutError:
                await self._ours.renew()

    async def _watch(self) -> None:
        while self._ours.is_in_line:  # noqa: ASYNC110 - the library tells nobody
            await asyncio.sleep(_LOOK_EACH_S)
        raise BrokerUnavailableError(
            f"consume {self._ours.queue}", "is the queue deleted?"
        )
