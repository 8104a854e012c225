"""
Publish events for workers on one channel: many at once, in order, each confirmed.

    bridge ──▶ exchange <ns>.events ──routing key──▶ queues of workers
       └─────▶ default exchange ──▶ queue in `reply_to` of a producer

An event whose routing key no queue is bound for is dropped by the broker, as on any topic
exchange. To notice that, events are mandatory, so the broker returns them. One with a `reply_to`
is not, because its producer may need no queue. The queue in a `reply_to` comes from a producer,
so nothing depends on it: a reply is sent once, and if it is returned, refused or not confirmed
soon, it is only counted. It follows the confirm of its event, because a malformed name of direct
reply-to ends the connection: RabbitMQ decodes a process of Erlang from it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from time import monotonic
from typing import Final

import aiormq

from bridge.amqp.connection import (
    CONNECTION_LOST,
    BrokerConnection,
    broker_call,
    close_reason,
)
from bridge.amqp.frame_reader import Confirm, RequestReader, Returned
from bridge.amqp.permissions import may_reply
from bridge.amqp.publish.frames import PublishFrames
from bridge.amqp.topology import Topology, declare, events_exchange
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import PERSISTENT, Properties, render_properties
from bridge.core.receipts import WorkerEvent
from bridge.enums import ReplyOutcome
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics

_REPLIES_WITHIN_S: Final = 2.0
_PROBE_EVERY_S: Final = 60.0
_CLOSE_WITHIN_S: Final = 2.0
_REPLY_TO_MAX_BYTES: Final = 255
_DIRECT: Final = "amq.rabbitmq.reply-to."
_DIRECT_PAUSE_S: Final = 30.0
# What most events have, up to the length of their id.
_UP_TO_ID: Final = render_properties(
    Properties(
        content_type=b"application/json", delivery_mode=PERSISTENT, message_id=b""
    )
)[:-1]


class DirectReplies:
    """Whether replies by direct reply-to are sent: not for a while after one lost the connection."""

    def __init__(self, *, pause_s: float = _DIRECT_PAUSE_S) -> None:
        self._pause_s = pause_s
        self._paused_until_s = 0.0  # on the monotonic clock

    @property
    def are_allowed(self) -> bool:
        """Whether they are sent now."""
        return monotonic() >= self._paused_until_s

    def pause(self) -> None:
        """Send none for a while."""
        self._paused_until_s = monotonic() + self._pause_s


async def open_event_channel(
    connection: BrokerConnection[RequestReader],
    names: BrokerNames,
    *,
    direct: DirectReplies,
    timeout_s: float,
    metrics: Metrics,
) -> "EventChannel":
    """
    Declare the exchange of events and open a channel for it.

    Args:
        connection: Publishes nothing else.
        names: Of the exchange, and of the queues that no reply may be sent to.
        direct: The same for all channels.
        timeout_s: How long the broker may take for each answer.
        metrics: Counts events and replies.

    Raises:
        TopologyError: If the exchange exists with other properties, or may not be declared.
        BrokerUnavailableError: If the broker is away, too slow or blocks publishers.

    """
    blocked_for = connection.reader.blocked_for
    if blocked_for is not None:  # it would not answer
        problem = f"the broker blocks publishers ({blocked_for})"
        raise BrokerUnavailableError("publish events", problem)
    wanted = Topology([events_exchange(names)], (), ())
    await declare(connection, wanted, timeout_s=timeout_s)
    wire = await connection.open_channel(confirms=True)
    return EventChannel(
        connection, wire, names, direct=direct, timeout_s=timeout_s, metrics=metrics
    )


class EventChannel:
    """Publishes on one channel, which is replaced after any failure."""

    def __init__(
        self,
        connection: BrokerConnection[RequestReader],
        wire: aiormq.Channel,
        names: BrokerNames,
        *,
        direct: DirectReplies,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._names = names
        self._direct = direct
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._frames = PublishFrames(connection, wire.number)
        self._tag = 0  # of the last publish
        # By tag: the queue of a reply; `None` for an event.
        self._unconfirmed: dict[int, bytes | None] = {}
        self._events_left = 0
        # Exchanges and routing keys of returned events and replies of the present call. A return
        # comes before its confirm, so only those of late replies are of an earlier call.
        self._returned: set[tuple[bytes, bytes]] = set()
        self._was_refused = False  # an event
        self._changed = asyncio.Event()
        self._may_reply = False
        self._probe_at_s = 0.0  # on the monotonic clock
        reader = connection.reader
        reader.subscribe(wire.number, "", lambda _: None)  # for `was_closed`
        reader.subscribe_publishes(wire.number, self._confirmed, self._note_returned)
        # Each read of `closing` adds an observer that lives as long as what it observes.
        self._connection_closing = connection.wire.closing
        for closing in (wire.closing, self._connection_closing):
            closing.add_done_callback(lambda _: self._changed.set())

    async def close(self) -> None:
        """Close the channel if that is possible; never raises."""
        self._connection_closing.cancel()  # the connection would keep this in memory
        if self._wire.is_closed or self._connection.is_lost:
            return
        with suppress(BrokerUnavailableError):
            async with broker_call("close a channel", timeout_s=_CLOSE_WITHIN_S):
                await self._wire.close()

    async def publish(
        self, events: Sequence[WorkerEvent], *, unchecked: Collection[str] = ()
    ) -> Mapping[str, bool]:
        """
        Publish `events` in order, and their replies; return when the broker has the events.

        Args:
            events: The events.
            unchecked: Routing keys whose events the broker does not return.

        Returns:
            Of the other routing keys of events without a `reply_to`, whether a queue receives
            these events.

        Raises:
            BrokerUnavailableError: If it did not confirm each of them in time. It may have
                stored some: publish all of them again, on another channel.

        Cancellation:
            Each may or may not have been published.

        """
        self._check()
        replies = [event for event in events if event.reply_to is not None]
        if replies:
            await self._probe()
        exchange = self._names.events.encode()
        self._events_left = len(events)
        # Routing key, and whether the producer receives a reply.
        routes = {(event.routing_key, event.reply_to is not None) for event in events}
        checked = {key for key, has_reply in routes if not has_reply} - {*unchecked}
        methods = {
            (key, has_reply): self._frames.method(
                exchange, key.encode(), mandatory=not has_reply and key in checked
            )
            for key, has_reply in routes
        }
        # In one write: each is a call of the system.
        frames = [
            self._render(methods[event.routing_key, event.reply_to is not None], event)
            for event in events
        ]
        if not self._connection.write(b"".join(frames)):
            raise self._unavailable(CONNECTION_LOST)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._until(lambda: not self._events_left)
        except TimeoutError as exc:
            problem = f"not confirmed within {self._timeout_s:g} s"
            raise self._unavailable(problem) from exc
        for key, count in Counter(event.routing_key for event in events).items():
            self._metrics.events_published.labels(key).inc(count)
        await self._send_replies([one for one in replies if not _is_direct(one)])
        if not await self._send_replies(list(filter(_is_direct, replies))):
            self._direct.pause()
        found = {key: (exchange, key.encode()) not in self._returned for key in checked}
        self._returned.clear()
        return found

    async def _send_replies(self, events: Sequence[WorkerEvent]) -> bool:
        """
        Publish the replies of `events`; never raises, because the events were published.

        Returns:
            False if the channel or connection was lost after they were sent.

        """
        if not events:
            return True
        frames, is_lost = b"".join(map(self._render_reply, events)), False
        if not self._wire.is_closed and self._connection.write(frames):
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REPLIES_WITHIN_S):
                        await self._until(lambda: not self._unconfirmed)
            except BrokerUnavailableError:
                is_lost = True
        for _ in self._unconfirmed:
            self._count(ReplyOutcome.UNCONFIRMED)
        self._unconfirmed.clear()
        return not is_lost

    # --- writing

    def _render(
        self, method: bytes, event: WorkerEvent, queue: bytes | None = None
    ) -> bytes:
        """Return the frames of the next publish: of an event, or of the reply to a queue."""
        message_id = event.id.encode()
        if event.correlation_id is None:  # several times as fast
            properties = _UP_TO_ID + bytes((len(message_id),)) + message_id
        else:
            properties = render_properties(
                Properties(
                    content_type=b"application/json",
                    delivery_mode=PERSISTENT,
                    correlation_id=event.correlation_id.encode(),
                    message_id=message_id,
                )
            )
        self._tag += 1
        self._unconfirmed[self._tag] = queue
        return method + self._frames.content(properties, event.body)

    def _render_reply(self, event: WorkerEvent) -> bytes:
        """Return the frames of the next publish; none if it may not be sent."""
        queue = (event.reply_to or "").encode()
        # A receipt in a queue of bridge would be taken for a message or a command.
        is_own = queue.startswith(f"{self._names.namespace}.".encode())
        is_paused = _is_direct(event) and not self._direct.are_allowed
        if is_own or is_paused or not queue or len(queue) > _REPLY_TO_MAX_BYTES:
            self._count(ReplyOutcome.REFUSED)
        elif not self._may_reply:
            self._count(ReplyOutcome.NOT_PERMITTED)
        else:
            method = self._frames.method(b"", queue, mandatory=True)
            return self._render(method, event, queue)
        return b""

    async def _probe(self) -> None:
        """Find out, once a minute while it is not, whether replies are permitted."""
        # The refusal of a publish would close the channel, with all that is in flight on it.
        now_s = monotonic()
        if self._may_reply or now_s < self._probe_at_s:
            return
        self._probe_at_s = now_s + _PROBE_EVERY_S
        self._may_reply = await may_reply(self._connection, timeout_s=self._timeout_s)

    # --- what the broker answers

    def _check(self) -> None:
        """Raise if nothing can be published on the channel now."""
        wire, reader = self._wire, self._connection.reader
        if self._connection.is_lost:
            raise self._unavailable(CONNECTION_LOST)
        if wire.is_closed or reader.was_closed(wire.number):
            reason = close_reason(wire) or CONNECTION_LOST
            if "ACCESS_REFUSED" in reason:
                reason += "; `bridge check` prints the command that grants it"
            elif "NOT_FOUND" in reason:
                reason += "; bridge declares it again: restart the workers, whose bindings are gone"
            raise self._unavailable(reason)
        if self._was_refused:
            problem = "not stored (nack): a queue that is bound to it may be full"
            raise self._unavailable(problem)

    def _unavailable(self, problem: str) -> BrokerUnavailableError:
        return BrokerUnavailableError(f"publish to {self._names.events}", problem)

    async def _until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            self._changed.clear()
            await self._changed.wait()
            self._check()

    def _note_returned(self, returned: Returned) -> None:
        self._returned.add((returned.exchange, returned.routing_key))

    def _confirmed(self, confirm: Confirm) -> None:
        tags = [confirm.tag]
        if confirm.is_multiple:  # the oldest come first
            tags = list(takewhile(lambda tag: tag <= confirm.tag, self._unconfirmed))
        for tag in tags:
            if tag not in self._unconfirmed:  # a reply, later than it was waited for
                continue
            queue = self._unconfirmed.pop(tag)
            if queue is None:
                self._events_left -= 1
                self._was_refused |= not confirm.is_ack
            elif not confirm.is_ack:
                self._count(ReplyOutcome.UNCONFIRMED)
            elif (b"", queue) in self._returned:
                self._count(ReplyOutcome.UNROUTABLE)
            else:
                self._count(ReplyOutcome.SENT)
        self._changed.set()

    def _count(self, outcome: ReplyOutcome) -> None:
        self._metrics.event_replies.labels(outcome).inc()


def _is_direct(event: WorkerEvent) -> bool:
    return (event.reply_to or "").startswith(_DIRECT)
