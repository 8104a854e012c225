"""
Publishing with confirms: when `publish` returns, the broker has the message for good.

Returns and nacks, a missing exchange, a message that is too large: the broker said no, and
the caller hears it. No answer in time: nobody knows, and the caller hears that.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import structlog
from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity, DeliveryError

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    broker_call,
    problem_text,
)
from bridge.amqp.frame_reader import ReturnReader
from bridge.amqp.publish.channels import CHANNELS_MAX, PublishSession, RawProperties
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.shards.migration import ShardMigration
from bridge.amqp.supervision import supervise
from bridge.amqp.topology import Topology, declare, retry_delay_ms
from bridge.core.broker_names import BrokerNames
from bridge.core.message import (
    USER_MAX_BYTES,
    Delivery,
)
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

_LOOK_EACH_S: Final = 1.0


class Publisher:
    """
    Publishes on a connection of its own. Any number of tasks may publish at a time.

    Args:
        address: Where the broker is.
        names: Of dead letters and retries.
        wanted: Declared at each connect, and again when a message could not be routed;
            ``None`` for one who only publishes and may not declare.
        shards: If given, says what is declared, in place of `wanted`.

    """

    def __init__(
        self,
        address: BrokerAddress,
        names: BrokerNames,
        *,
        metrics: Metrics,
        wanted: Topology | None = None,
        shards: ShardPlan | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._address = address
        self._names = names
        self._wanted = wanted
        self._shards = shards
        self._metrics = metrics
        self._now = now
        self._session: PublishSession | None = None
        self._connected = asyncio.Event()
        self._places = asyncio.Semaphore(CHANNELS_MAX)
        self._was_connected = False

    @property
    def is_connected(self) -> bool:
        """Whether a publish could be sent right now, as far as can be known."""
        return self._session is not None and self._session.problem() is None

    @property
    def max_properties_bytes(self) -> int:
        """The largest properties that fit into one frame of this connection."""
        if self._session is None:
            return PROPERTIES_MAX_BYTES
        return self._session.max_properties_bytes

    async def run(self) -> None:
        """
        Keep a connection until cancelled, whatever happens to the broker.

        Raises:
            TopologyError: If something else has our names on the broker, at the first
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
    ) -> None:
        """
        Publish one message and wait until the broker has it for good.

        Args:
            exchange: Where to.
            routing_key: Sent as it is if it is UTF-8, else with each odd byte written
                in hexadecimal, cut at 255 bytes.
            body: Sent as it is.
            properties: Sent as they are, byte by byte; say `delivery_mode` yourself.
            timeout_s: The longest that all of it may take, waiting for a connection
                included; ``None`` = the broker timeout.
            mandatory: Whether it is an error that no queue gets it.

        Raises:
            PublishRefusedError: If the broker said no: a return, a nack, no such
                exchange, no permission, too large.
            BrokerUnavailableError: If there was no answer in time. The message may
                have arrived nevertheless.

        Cancellation:
            The message may or may not have been sent.

        """
        try:
            raw = render_properties(properties)
        except ValueError as exc:
            raise PublishRefusedError(exchange, str(exc)) from exc
        key = _readable_key(routing_key)
        doing = f"publish to {exchange}"
        timeout_s = self._address.timeout_s if timeout_s is None else timeout_s
        async with broker_call(doing, timeout_s=timeout_s), self._places:
            session = await self._wait_for_session()
            session.check_size(exchange, raw)
            await session.ready()
            async with session.slot() as slot:
                try:
                    await slot.channel.basic_publish(
                        body,
                        exchange=exchange,
                        routing_key=key,
                        properties=RawProperties(raw),
                        mandatory=mandatory,
                    )
                except DeliveryError as exc:
                    problem = "the broker could not take it (nack)"
                    raise PublishRefusedError(exchange, problem) from exc
                except AMQPChannelError as exc:
                    if isinstance(exc, ChannelNotFoundEntity):
                        session.needs_repair = True
                    raise PublishRefusedError(exchange, problem_text(exc)) from exc
                if slot.returned is not None:
                    session.needs_repair = True
                    raise PublishRefusedError(exchange, slot.returned)

    async def dead_letter(
        self, delivery: Delivery, letter: DeadLetter, *, timeout_s: float | None = None
    ) -> None:
        """
        Set `delivery` aside with its reason. The original is not acked here.

        Raises:
            PublishRefusedError, BrokerUnavailableError: As `publish`.

        """
        properties = dead_letter_properties(
            delivery,
            letter,
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
        Let `delivery` come back after its delay. The original is not acked here.

        Args:
            delivery: The original.
            retry: One of the delays that were declared.
            deadline_s: The message's deadline as Unix time, if it has one.
            timeout_s: As `publish`.

        Raises:
            PublishRefusedError, BrokerUnavailableError: As `publish`.

        """
        properties = retry_properties(
            delivery,
            retry,
            deadline_s=deadline_s,
            max_bytes=self.max_properties_bytes,
        )
        await self.publish(
            self._names.retry_queue(retry_delay_ms(retry.delay_s)),
            delivery.routing_key,
            body=delivery.body,
            properties=properties,
            timeout_s=timeout_s,
        )

    async def _wait_for_session(self) -> PublishSession:
        while True:
            session = self._session
            if session is not None and session.problem() is None:
                return session
            self._connected.clear()
            await self._connected.wait()

    async def _serve(self, connection: BrokerConnection[ReturnReader]) -> None:
        """Be one session: from declaring to the first thing that goes wrong."""
        await self._declare(connection)
        session = self._session = PublishSession(connection)
        self._was_connected = True
        self._connected.set()
        try:
            while (problem := session.problem()) is None:
                session.look.clear()
                try:
                    # Repairs are made once a second at most, however many ask.
                    async with asyncio.timeout(_LOOK_EACH_S):
                        await session.look.wait()
                except TimeoutError:
                    if session.needs_repair:
                        session.needs_repair = False
                        await self._declare(connection)
            raise BrokerUnavailableError("publish", problem)
        finally:
            self._session = None

    async def _declare(self, connection: BrokerConnection[ReturnReader]) -> None:
        try:
            if self._shards is not None:
                await ShardMigration(connection, self._shards).ensure()
            elif self._wanted is not None:
                await declare(
                    connection, self._wanted, timeout_s=self._address.timeout_s
                )
        except TopologyError as exc:
            if not self._was_connected:
                raise
            log.error(  # noqa: TRY400 - its sentence says all, a traceback nothing
                "publisher.topology_differs", problem=str(exc)
            )


def _readable_key(routing_key: bytes) -> str:
    """Exact for UTF-8; dead letters of others carry their key in a header, byte by byte."""
    try:
        return routing_key.decode()
    except UnicodeDecodeError:
        readable = routing_key.decode(errors="backslashreplace").encode()
        return readable[:USER_MAX_BYTES].decode(errors="ignore")
