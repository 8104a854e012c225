"""
Requests from pages to workers: publish, confirm, return and reply, on one channel.

    page ──▶ exchange <ns>.requests ──event──▶ queue of a worker
    page ◀─────── direct reply-to of this channel ◀─────── worker

Replies come by RabbitMQ's direct reply-to, which needs no queue and no permission. Its address
is valid for one channel, so a request that is in flight when the connection is lost can
receive no reply any more: it ends as `not_available`, and the worker's reply is dropped by
the broker. Nothing is sent again, because a worker may have processed the request.

Each request ends exactly once: the first of a reply, a return, a nack, the timeout and the
loss of the connection removes it from the table, and later ones find nothing.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import aiormq
import structlog

from bridge.amqp.connection import (
    CONNECTION_LOST,
    NO_CONNECTION,
    BrokerAddress,
    BrokerConnection,
    Purpose,
    ignore_message,
)
from bridge.amqp.frame_reader import Confirm, RequestReader, Returned
from bridge.amqp.publish.frames import PublishFrames
from bridge.amqp.supervision import OutageLog, supervise
from bridge.amqp.topology import declare, requests_topology
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.core.properties import (
    PERSISTENT,
    Properties,
    parse_properties,
    render_properties,
    render_table,
)
from bridge.enums import RequestOutcome
from bridge.errors import BrokerUnavailableError, TopologyError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

_REPLY_TO: Final = "amq.rabbitmq.reply-to"
_ID_BYTES: Final = 12  # a worker must not guess the ids of requests to other workers
# Bytes that the broker has not confirmed. More wait only while it is too slow or frozen.
_UNCONFIRMED_MAX_BYTES: Final = 4 << 20

# The reply of a worker, or how the request ended without one.
RequestResult = Delivery | RequestOutcome
OnResult = Callable[[RequestResult], None]


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """
    A request for a worker.

    Attributes:
        event: The routing key, at most 255 bytes.
        body: JSON.
        headers: Set by bridge alone.
        wants_reply: Whether the page waits for an answer.

    """

    event: str
    body: bytes
    headers: Mapping[str, str]
    wants_reply: bool


@dataclass(slots=True)
class _Pending:
    on_result: OnResult
    due_s: float  # on the clock of the event loop
    wants_reply: bool


class RequestChannel:
    """
    The requests that are in flight on one channel; all of them end when it closes.

    Attributes:
        has_closed: Set when the channel or its connection closes.

    """

    def __init__(
        self,
        connection: BrokerConnection[RequestReader],
        wire: aiormq.Channel,
        *,
        exchange: str,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._pending: dict[str, _Pending] = {}  # by id, oldest first
        self._tag = 0  # of the last publish
        self._unconfirmed: dict[int, tuple[str, int]] = {}  # id and size, by tag
        self._unconfirmed_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._frames = PublishFrames(connection, wire.number)
        self._methods: dict[str, bytes] = {}  # the first frame, by event
        self._expiration = str(max(1, round(timeout_s * 1000))).encode()
        self.has_closed = asyncio.Event()
        for closing in (wire.closing, connection.wire.closing):
            closing.add_done_callback(lambda _: self.has_closed.set())

    async def open(self) -> None:
        """
        Receive replies and confirms.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        reader = self._connection.reader
        reader.subscribe(self._wire.number, _REPLY_TO, self._replied)
        reader.subscribe_publishes(self._wire.number, self._confirmed, self._returned)
        async with self._connection.call("consume replies"):
            await self._wire.basic_consume(_REPLY_TO, ignore_message, no_ack=True)

    @property
    def problem(self) -> str | None:
        """Why nothing can be published now; ``None`` as far as is known."""
        reader = self._connection.reader
        if self.has_closed.is_set() or reader.was_closed(self._wire.number):
            return CONNECTION_LOST
        if reader.blocked_for is not None:
            return f"the broker blocks publishers ({reader.blocked_for})"
        if self._unconfirmed_bytes > _UNCONFIRMED_MAX_BYTES:
            return "the broker leaves too many requests unconfirmed"
        return None

    def publish(self, request: OutgoingRequest, on_result: OnResult) -> None:
        """Publish a request; `on_result` is called once, possibly before this returns."""
        id_ = secrets.token_hex(_ID_BYTES)
        frames = self._render(request, id_.encode())
        if self.problem is not None or not self._connection.write(frames):
            on_result(RequestOutcome.NOT_AVAILABLE)
            return
        self._tag += 1
        self._unconfirmed[self._tag] = (id_, len(frames))
        self._unconfirmed_bytes += len(frames)
        due_s = self._loop.time() + self._timeout_s
        self._pending[id_] = _Pending(on_result, due_s, request.wants_reply)
        if self._timer is None:
            self._timer = self._loop.call_at(due_s, self._expire)

    def _render(self, request: OutgoingRequest, id_: bytes) -> bytes:
        properties = render_properties(
            Properties(
                content_type=b"application/json",
                headers=render_table(request.headers),
                delivery_mode=PERSISTENT,
                correlation_id=id_,
                reply_to=_REPLY_TO.encode() if request.wants_reply else None,
                expiration=self._expiration,
                message_id=id_,
            )
        )
        method = self._methods.get(request.event)
        if method is None:
            method = self._methods[request.event] = self._frames.method(
                self._exchange.encode(), request.event.encode(), mandatory=True
            )
        return method + self._frames.content(properties, request.body)

    # --- how a request ends

    def _end(self, id_: str, result: RequestResult) -> bool:
        """End a request; false if it has ended before."""
        pending = self._pending.pop(id_, None)
        if pending is None:
            return False
        pending.on_result(result)
        return True

    def _replied(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            id_ = delivery.properties.correlation_id or b""
            if not self._end(id_.decode(errors="replace"), delivery):
                self._metrics.late_replies.inc()

    def _returned(self, returned: Returned) -> None:
        id_ = parse_properties(returned.raw_properties).message_id or b""
        self._end(id_.decode(errors="replace"), RequestOutcome.UNROUTABLE)

    def _confirmed(self, confirm: Confirm) -> None:
        tags = [confirm.tag]
        if confirm.is_multiple:  # the oldest come first
            tags = list(takewhile(lambda tag: tag <= confirm.tag, self._unconfirmed))
        for tag in tags:
            id_, size = self._unconfirmed.pop(tag, ("", 0))
            self._unconfirmed_bytes -= size
            pending = self._pending.get(id_)
            if pending is not None and not confirm.is_ack:
                self._end(id_, RequestOutcome.NOT_AVAILABLE)
            elif pending is not None and not pending.wants_reply:
                self._end(id_, RequestOutcome.SENT)

    def _expire(self) -> None:
        """End the requests that are due; all have the same timeout, so the oldest is first."""
        now_s = self._loop.time()
        # Not one after the other: after many deletions at its front, a dict finds its first
        # item slowly.
        due = takewhile(lambda item: item[1].due_s <= now_s, self._pending.items())
        for id_ in [id_ for id_, _ in due]:
            self._end(id_, RequestOutcome.TIMEOUT)
        self._timer = None
        oldest = next(iter(self._pending.values()), None)
        if oldest is not None:
            self._timer = self._loop.call_at(oldest.due_s, self._expire)

    def close(self) -> None:
        """End all requests in flight: no reply can arrive any more."""
        self.has_closed.set()
        if self._timer is not None:
            self._timer.cancel()
        for id_ in tuple(self._pending):
            self._end(id_, RequestOutcome.NOT_AVAILABLE)


class RequestClient:
    """
    Sends requests to workers on a connection of its own, which is opened again when lost.

    Args:
        address: Where the broker is.
        names: Of the exchange of requests, which is declared at each connect.
        timeout_s: How long a request may wait, in the queue and for its reply.
        metrics: Counts late replies and reconnects.
        outages: Logs why the broker cannot be used.

    """

    def __init__(
        self,
        address: BrokerAddress,
        names: BrokerNames,
        *,
        timeout_s: float,
        metrics: Metrics,
        outages: OutageLog | None = None,
    ) -> None:
        self._address = address
        self._names = names
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._outages = outages or OutageLog()
        self._channel: RequestChannel | None = None
        self._was_connected = False

    @property
    def problem(self) -> str | None:
        """Why requests end as `not_available` now; ``None`` as far as is known."""
        if self._channel is None:
            return NO_CONNECTION
        return self._channel.problem

    def send(self, request: OutgoingRequest, on_result: OnResult) -> None:
        """
        Send a request without waiting for a connection.

        Args:
            request: The request.
            on_result: Called exactly once, possibly before this returns. It must neither
                raise nor block.

        """
        if self._channel is None:
            on_result(RequestOutcome.NOT_AVAILABLE)
        else:
            self._channel.publish(request, on_result)

    async def run(self) -> None:
        """
        Keep a connection until canceled; reconnect when it is lost.

        Raises:
            TopologyError: If the exchange exists with other properties, or may not be
                declared, at the first connect. Later it is logged.

        Cancellation:
            Closes the connection; requests in flight end as `not_available`.

        """
        await supervise(
            self._serve,
            address=self._address,
            purpose=Purpose.REQUEST,
            reader=RequestReader,
            metrics=self._metrics,
            outages=self._outages,
        )

    async def _serve(self, connection: BrokerConnection[RequestReader]) -> None:
        wanted = requests_topology(self._names)
        try:
            await declare(connection, wanted, timeout_s=self._address.timeout_s)
        except TopologyError as exc:
            if not self._was_connected:
                raise
            raise BrokerUnavailableError("declare the requests", str(exc)) from exc
        self._was_connected = True
        channel = RequestChannel(
            connection,
            await connection.open_channel(confirms=True),
            exchange=self._names.requests,
            timeout_s=self._timeout_s,
            metrics=self._metrics,
        )
        await channel.open()
        self._channel = channel
        try:
            await channel.has_closed.wait()
            raise BrokerUnavailableError("send requests", CONNECTION_LOST)
        finally:
            self._channel = None
            channel.close()
