"""
Commands of the back end, from the queue `<ns>.control`.

One bridge receives each command and carries it out for all: a kick asks the other bridges, and
a revocation reaches them through the store. A command is acked after that, so it outlasts
every bridge, and waits while the store is away. A repeated one has the same effect.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from time import time
from typing import Final, assert_never

import aiormq
import structlog

from bridge.amqp.connection import BrokerConnection, ignore_message
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.contracts.control import KickCommand, RevokeCommand, parse_command
from bridge.core.message import Delivery
from bridge.core.revocation import Revocation
from bridge.enums import ControlOutcome
from bridge.errors import BrokerUnavailableError, TransientError
from bridge.logging import user_hash
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

# Commands that are carried out at the same time: a kick may wait a second for a bridge that
# does not answer.
_PREFETCH: Final = 50
_RETRY_S: Final = 1.0
_POLL_S: Final = 0.5


class ControlConsumer:
    """
    Carries out the commands in one queue, on any number of connections after each other.

    Args:
        queue: The queue.
        kick: Closes the windows of a user, with a reason for people; never raises.
        revoke: Stores a revocation; raises TransientError if that is not possible now.
        metrics: Counts commands by outcome.

    """

    def __init__(
        self,
        queue: str,
        *,
        kick: Callable[[str, str | None], Awaitable[object]],
        revoke: Callable[[Revocation], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._kick = kick
        self._revoke = revoke
        self._metrics = metrics

    async def run(self, connection: BrokerConnection[DeliveryReader]) -> None:
        """
        Consume the queue until cancelled.

        Raises:
            BrokerUnavailableError: If the consumer is lost, for example because the queue
                was deleted.

        Cancellation:
            The broker redelivers what is not acked.

        """
        channel = await connection.open_channel(confirms=False)
        waiting: asyncio.Queue[Delivery] = asyncio.Queue()  # the prefetch is its bound

        def take(deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                waiting.put_nowait(delivery)

        doing = f"consume {self._queue}"
        connection.reader.subscribe(channel.number, self._queue, take)
        try:
            async with connection.call(doing):
                await channel.basic_qos(prefetch_count=_PREFETCH)
                reply = await channel.basic_consume(self._queue, ignore_message)
            async with asyncio.TaskGroup() as tasks:
                # The library has no event for the end of a consumer.
                while reply.consumer_tag in channel.consumers and not channel.is_closed:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_S):
                            delivery = await waiting.get()
                            work = self._process(connection, channel, delivery)
                            tasks.create_task(work, name=doing)
                raise BrokerUnavailableError(doing, "the consumer was cancelled")
        finally:
            connection.reader.unsubscribe(channel.number, take)

    async def _process(
        self,
        connection: BrokerConnection[DeliveryReader],
        channel: aiormq.Channel,
        delivery: Delivery,
    ) -> None:
        try:
            outcome = await self._carry_out(delivery)
        except Exception:
            log.exception("control.failed")
            outcome = ControlOutcome.FAILED
        self._metrics.control_commands.labels(outcome=outcome).inc()
        async with connection.call(f"settle a delivery of {self._queue}"):
            if outcome is ControlOutcome.DONE:
                await channel.basic_ack(delivery.tag, wait=False)
            else:  # it becomes a dead letter, and blocks no other command
                await channel.basic_reject(delivery.tag, requeue=False, wait=False)

    async def _carry_out(self, delivery: Delivery) -> ControlOutcome:
        try:
            work: Callable[[], Awaitable[object]]
            command = parse_command(delivery.routing_key, delivery.body)
            match command:
                case KickCommand():
                    work = partial(self._kick, command.user, command.reason)
                case RevokeCommand():
                    revocation = command.revocation(command.user, now_s=time())
                    work = partial(self._revoke, revocation)
                case _ as never:
                    assert_never(never)
        except ValueError as exc:
            log.warning("control.refused", problem=str(exc))
            return ControlOutcome.REFUSED
        user = user_hash(command.user)
        is_waiting = False
        while True:
            try:
                await work()
            except TransientError as exc:
                if not is_waiting:
                    log.warning("control.waiting", user=user, problem=str(exc))
                is_waiting = True
                await asyncio.sleep(_RETRY_S)
            else:
                log.info(
                    "control.done", command=delivery.routing_key.decode(), user=user
                )
                return ControlOutcome.DONE
