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

from bridge.amqp.connection import (
    BrokerConnection,
    broker_call,
    close_reason,
    ignore_message,
)
from bridge.amqp.frame_reader import DeliveryReader
from bridge.amqp.topology import control_topology, declare
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.control import KickCommand, RevokeCommand, parse_command
from bridge.core.message import Delivery
from bridge.core.revocation import Revocation
from bridge.enums import ControlOutcome
from bridge.errors import (
    BrokerUnavailableError,
    TopologyError,
    TransientError,
    first_error,
)
from bridge.logging import user_hash
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

# Commands of one kind that are carried out at the same time: a kick may wait a second for a
# bridge that does not answer.
_CONCURRENT: Final = 50
# Far more: revocations that wait for the store must not keep kicks in the queue.
_PREFETCH: Final = 1000
_RETRY_S: Final = 1.0
_CLOSE_WITHIN_S: Final = 2.0


class ControlConsumer:
    """
    Carries out the commands in one queue, on any number of connections after each other.

    Args:
        names: Of the queue and its exchange.
        kick: Closes the windows of a user, with a reason for people; never raises.
        revoke: Stores a revocation; raises TransientError if that is not possible now.
        metrics: Counts commands by outcome.
        timeout_s: The limit of one call to the broker.

    Attributes:
        problem: Why commands are not consumed although the connection is open; ``None`` if
            they are, or nothing is known.

    """

    def __init__(
        self,
        names: BrokerNames,
        *,
        kick: Callable[[str, str | None], Awaitable[object]],
        revoke: Callable[[Revocation], Awaitable[None]],
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        self.problem: str | None = None
        self._queue = names.control
        self._wanted = control_topology(names)
        self._kick = kick
        self._revoke = revoke
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._kicking = asyncio.Semaphore(_CONCURRENT)
        self._revoking = asyncio.Semaphore(_CONCURRENT)

    async def run(self, connection: BrokerConnection[DeliveryReader]) -> None:
        """
        Consume the queue until cancelled; a consumer that is lost is replaced.

        Raises:
            BrokerUnavailableError: If the connection is lost.

        Cancellation:
            The broker redelivers what is not acked.

        """
        while True:
            try:
                await self._consume(connection)
            except* (BrokerUnavailableError, TopologyError) as group:
                # A TaskGroup that ends with an error loses a cancellation that arrives
                # meanwhile.
                task = asyncio.current_task()
                if connection.is_lost or (task is not None and task.cancelling()):
                    self.problem = None  # it concerns all queues
                    raise
                problem = str(first_error(group))
                if self.problem != problem:
                    self.problem = problem
                    log.warning("control.consumer_lost", problem=problem)
            await asyncio.sleep(_RETRY_S)

    async def _consume(self, connection: BrokerConnection[DeliveryReader]) -> None:
        # The queue may have been deleted.
        await declare(connection, self._wanted, timeout_s=self._timeout_s)
        channel = await connection.open_channel(confirms=False)
        # The prefetch is its bound. None marks the end of the consumer.
        waiting: asyncio.Queue[Delivery | None] = asyncio.Queue()

        def take(deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                waiting.put_nowait(delivery)

        def end(_: object) -> None:
            waiting.put_nowait(None)

        doing = f"consume {self._queue}"
        is_consuming = False
        connection.reader.subscribe(channel.number, self._queue, take)
        channel.on_consumer_cancel_callbacks.add(end)
        channel.closing.add_done_callback(end)
        try:
            async with connection.call(doing):
                await channel.basic_qos(prefetch_count=_PREFETCH)
                await channel.basic_consume(self._queue, ignore_message)
            is_consuming = True
            self.problem = None
            # The tasks end before the channel is closed: an ack after that would be an error
            # of the whole connection.
            async with asyncio.TaskGroup() as tasks:
                while (delivery := await waiting.get()) is not None:
                    work = self._process(connection, channel, delivery)
                    tasks.create_task(work, name=doing)
                problem = close_reason(channel) or "the consumer was cancelled"
                raise BrokerUnavailableError(doing, problem)
        finally:
            connection.reader.unsubscribe(channel.number, take)
            # The next session on this connection consumes the queue, too. Commands that the
            # broker delivers to an open channel without a subscription would wait forever.
            # A call that failed has closed the channel, and closing it twice would be an
            # error of the whole connection.
            if is_consuming:
                with suppress(BrokerUnavailableError):
                    async with broker_call("close", timeout_s=_CLOSE_WITHIN_S):
                        await channel.close()

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
                    slots = self._kicking
                case RevokeCommand():
                    revocation = command.revocation(command.user, now_s=time())
                    work = partial(self._revoke, revocation)
                    slots = self._revoking
                case _ as never:
                    assert_never(never)
        except ValueError as exc:
            log.warning("control.refused", problem=str(exc))
            return ControlOutcome.REFUSED
        user = user_hash(command.user)
        is_waiting = False
        async with slots:
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
