"""
Publish with confirms: when `publish` returns, the broker has stored the message.

A return, a nack, a missing exchange and oversized properties are refusals
(`PublishRefusedError`). Without an answer in time the outcome is unknown
(`BrokerUnavailableError`).
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final
from uuid import uuid4

import structlog
from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity, DeliveryError

from bridge.amqp.connection import (
    NO_CONNECTION,
    BrokerAddress,
    BrokerConnection,
    Purpose,
    broker_call,
    problem_text,
)
from bridge.amqp.frame_reader import ReturnReader
from bridge.amqp.publish.channels import CHANNELS_MAX, ChannelPool, RawProperties
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.shards.migration import ShardMigration
from bridge.amqp.supervision import OutageLog, supervise
from bridge.amqp.topology import Topology, declare, retry_delay_ms
from bridge.core.broker_names import BrokerNames
from bridge.core.message import USER_MAX_BYTES, Delivery
from bridge.core.properties import Properties, render_properties
from bridge.core.settlement import (
    PROPERTIES_MAX_BYTES,
    DeadLetter,
    RetryAfter,
    dead_letter_properties,
    retry_properties,
)
from bridge.errors import BrokerUnavailableError, PublishRefusedError, TopologyError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

_REPAIR_EVERY_S: Final = 1.0


class Publisher:
    """
    Publishes on a connection of its own. Any number of tasks may publish concurrently.

    Args:
        address: Where the broker is.
        names: Of the exchanges of dead letters and retries.
        declares: Declared at each connect, and again when a message could not be routed: a
            topology, or the layout that the broker records for a plan. ``None`` = nothing, for clients
            without the permission.

    """

    def __init__(
        self,
        address: BrokerAddress,
        names: BrokerNames,
        *,
        metrics: Metrics,
        declares: Topology | ShardPlan | None = None,
        now: Callable[[], float] = time.time,
        outages: OutageLog | None = None,
    ) -> None:
        self._address = address
        self._names = names
        self._declares = declares
        self._metrics = metrics
        self._outages = outages or OutageLog()
        self._now = now
        self._channels: ChannelPool | None = None
        self._connected = asyncio.Event()
        self._in_flight = asyncio.Semaphore(CHANNELS_MAX)
        self._was_connected = False
        self._needs_repair = False  # a message could not be routed

    @property
    def max_properties_bytes(self) -> int:
        """The size of the largest properties that fit into one frame of the connection."""
        if self._channels is None:
            return PROPERTIES_MAX_BYTES
        return self._channels.max_properties_bytes

    @property
    def is_blocked(self) -> bool:
        """Whether the broker blocks publishers, as far as is known."""
        return self._channels is not None and self._channels.blocked_for is not None

    @property
    def problem(self) -> str | None:
        """Why nothing can be published now; ``None`` as far as is known."""
        if self._channels is None:
            return NO_CONNECTION
        if self.is_blocked:
            return f"the broker blocks publishers ({self._channels.blocked_for})"
        return None

    async def ready(self) -> None:
        """
        Wait until there is a connection that the broker does not block.

        Raises:
            BrokerUnavailableError: If there is none within the broker timeout.

        """
        async with broker_call("publish", timeout_s=self._address.timeout_s):
            channels = await self._wait_for_connection()
            await channels.ready()

    async def run(self) -> None:
        """
        Keep a connection until canceled; reconnect when it is lost.

        Raises:
            TopologyError: If an exchange or queue exists with other arguments, at the first
                connect. Later it is logged.

        Cancellation:
            Closes the connection; publishes in flight fail.

        """
        await supervise(
            self._serve,
            address=self._address,
            purpose=Purpose.PUBLISH,
            reader=ReturnReader,
            metrics=self._metrics,
            outages=self._outages,
        )

    async def publish(
        self,
        exchange: str,
        routing_key: bytes,
        *,
        body: bytes,
        properties: Properties,
        timeout_s: float | None = None,
        mandatory: bool = True,
        in_order: bool = False,
    ) -> None:
        """
        Publish one message and wait until the broker has stored it.

        Args:
            exchange: The exchange to publish to.
            routing_key: Sent unchanged if it is UTF-8; otherwise invalid bytes are written in
                hexadecimal, and the key is cut at 255 bytes.
            body: Sent unchanged.
            properties: Sent unchanged, byte by byte; `delivery_mode` is not added.
            timeout_s: Limits the whole call, including the wait for a connection; ``None`` =
                the broker timeout.
            mandatory: Whether a message that reaches no queue is an error.
            in_order: Whether the broker receives concurrent publishes in the order of the
                calls. If one is refused, others of them may be reported as refused, too.

        Raises:
            PublishRefusedError: If the broker refused it: a return, a nack, a missing
                exchange or permission, oversized properties.
            BrokerUnavailableError: If there was no answer in time. The broker may have stored
                the message nevertheless.

        Cancellation:
            The message may or may not have been published.

        """
        try:
            raw = render_properties(properties)
        except ValueError as exc:
            raise PublishRefusedError(exchange, str(exc)) from exc
        key = _readable_key(routing_key)
        doing = f"publish to {exchange}"
        timeout_s = self._address.timeout_s if timeout_s is None else timeout_s
        in_flight = (
            nullcontext() if in_order else self._in_flight
        )  # one channel for all
        async with broker_call(doing, timeout_s=timeout_s), in_flight:
            channels = await self._wait_for_connection()
            channels.check_size(exchange, raw)
            await channels.ready()
            async with channels.channel(in_order=in_order) as channel:
                try:
                    await channel.wire.basic_publish(
                        body,
                        exchange=exchange,
                        routing_key=key,
                        properties=RawProperties(raw),
                        mandatory=mandatory,
                    )
                except DeliveryError as exc:
                    problem = "the broker could not store it (nack)"
                    raise PublishRefusedError(exchange, problem) from exc
                except AMQPChannelError as exc:
                    if isinstance(exc, ChannelNotFoundEntity):
                        self._needs_repair = True
                    raise PublishRefusedError(exchange, problem_text(exc)) from exc
                if channel.returned is not None:
                    self._needs_repair = True
                    raise PublishRefusedError(exchange, channel.returned)

    async def dead_letter(
        self,
        delivery: Delivery,
        settlement: DeadLetter,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """
        Publish a copy of `delivery` to the dead letters. The caller acks the original.

        Raises:
            PublishRefusedError, BrokerUnavailableError: As `publish`.

        """
        properties = dead_letter_properties(
            delivery,
            settlement,
            now_s=self._now(),
            letter_id=uuid4().hex,
            max_bytes=self.max_properties_bytes,
        )
        await self.publish(
            self._names.dead,
            delivery.routing_key,
            body=delivery.body,
            properties=properties,
            timeout_s=timeout_s,
            in_order=True,
        )

    async def retry(
        self,
        delivery: Delivery,
        retry: RetryAfter,
        *,
        deadline_s: float | None,
        timeout_s: float | None = None,
    ) -> None:
        """
        Publish a copy of `delivery` to a retry queue. The caller acks the original.

        Args:
            delivery: The original.
            retry: The attempt and its delay, which must be one of the declared delays.
            deadline_s: The deadline of the message as Unix time; ``None`` = none.
            timeout_s: As `publish`.

        Raises:
            PublishRefusedError, BrokerUnavailableError: As `publish`.

        """
        properties = retry_properties(
            delivery, retry, deadline_s=deadline_s, max_bytes=self.max_properties_bytes
        )
        await self.publish(
            self._names.retry_queue(retry_delay_ms(retry.delay_s)),
            delivery.routing_key,
            body=delivery.body,
            properties=properties,
            timeout_s=timeout_s,
            in_order=True,
        )

    async def _wait_for_connection(self) -> ChannelPool:
        while True:
            channels = self._channels
            if channels is not None and channels.problem() is None:
                return channels
            self._connected.clear()
            await self._connected.wait()

    async def _serve(self, connection: BrokerConnection[ReturnReader]) -> None:
        """Declare the topology and serve publishes until the connection has a problem."""
        await self._declare(connection)
        channels = self._channels = ChannelPool(connection)
        self._was_connected = True
        self._connected.set()
        try:
            while (problem := channels.problem()) is None:
                try:
                    # At most one repair per second, however many publishes fail.
                    async with asyncio.timeout(_REPAIR_EVERY_S):
                        await channels.has_closed.wait()
                except TimeoutError:
                    if self._needs_repair:
                        self._needs_repair = False
                        await self._declare(connection)
            raise BrokerUnavailableError("publish", problem)
        finally:
            self._channels = None

    async def _declare(self, connection: BrokerConnection[ReturnReader]) -> None:
        try:
            if isinstance(self._declares, ShardPlan):
                await ShardMigration(connection, self._declares).ensure()
            elif self._declares is not None:
                await declare(
                    connection, self._declares, timeout_s=self._address.timeout_s
                )
        except TopologyError as exc:
            if not self._was_connected:
                raise
            log.error(  # noqa: TRY400 - the text names the problem; a traceback adds nothing
                "publisher.topology_differs", problem=str(exc)
            )


def _readable_key(routing_key: bytes) -> str:
    """Return valid UTF-8 unchanged. A dead letter carries the original key in a header."""
    try:
        return routing_key.decode()
    except UnicodeDecodeError:
        readable = routing_key.decode(errors="backslashreplace").encode()
        return readable[:USER_MAX_BYTES].decode(errors="ignore")
