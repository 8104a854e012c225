"""
Publish events for workers on one channel: many at once, in order, each confirmed.

    bridge ──▶ exchange <ns>.events ──routing key──▶ queues of workers
       └─────▶ default exchange ──▶ queue in `reply_to` of a producer

An event whose routing key no queue is bound for is dropped by the broker, as on any topic
exchange. To notice that, one event of each routing key is mandatory, at most once a minute, so
the broker returns it. One with a `reply_to` is never mandatory, because its producer may need no
queue. The queue in a `reply_to` comes from a producer, so nothing depends on it: a reply is
sent once, and if it is returned, refused or not confirmed soon, it is only counted.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from bridge.amqp.frame_reader import Confirm, RequestReader
from bridge.amqp.permissions import may_reply
from bridge.amqp.publish.frames import PublishFrames
from bridge.amqp.topology import Topology, declare, events_exchange
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import (
    PERSISTENT,
    Properties,
    parse_properties,
    render_properties,
)
from bridge.core.receipts import WorkerEvent
from bridge.enums import ReplyOutcome
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics

_REPLIES_WITHIN_S: Final = 2.0
_PROBE_EVERY_S: Final = 60.0
_CLOSE_WITHIN_S: Final = 2.0
_REPLY_TO_MAX_BYTES: Final = 255
# What most events have, up to the length of their id.
_UP_TO_ID: Final = render_properties(
    Properties(
        content_type=b"application/json", delivery_mode=PERSISTENT, message_id=b""
    )
)[:-1]


async def open_event_channel(
    connection: BrokerConnection[RequestReader],
    names: BrokerNames,
    *,
    timeout_s: float,
    metrics: Metrics,
) -> "EventChannel":
    """
    Declare the exchange of events and open a channel for it.

    Args:
        connection: Publishes nothing else.
        names: Of the exchange, and of the queues that no reply may be sent to.
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
    return EventChannel(connection, wire, names, timeout_s=timeout_s, metrics=metrics)


class EventChannel:
    """Publishes on one channel, which is replaced after any failure."""

    def __init__(
        self,
        connection: BrokerConnection[RequestReader],
        wire: aiormq.Channel,
        names: BrokerNames,
        *,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._names = names
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._frames = PublishFrames(connection, wire.number)
        self._tag = 0  # of the last publish
        self._unconfirmed: dict[int, bool] = {}  # by tag: whether it is a reply
        self._events_left = 0
        self._returned = 0  # replies that are not confirmed yet
        self._mandatory: dict[str, str] = {}  # events: their routing keys by id
        self._unrouted: list[str] = []  # the routing keys of those that were returned
        self._route_due_s: dict[str, float] = {}  # by routing key, as `_probe_at_s`
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

    async def publish(self, events: Sequence[WorkerEvent]) -> Mapping[str, bool]:
        """
        Publish `events` in order, and their replies; return when the broker has the events.

        Returns:
            Of the routing keys that were checked, whether a queue receives their events.

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
        methods = {
            key: self._frames.method(exchange, key.encode(), mandatory=False)
            for key in {event.routing_key for event in events}
        }
        # In one write: each is a call of the system.
        frames = [
            self._render(methods[event.routing_key], event, is_reply=False)
            for event in events
        ]
        self._check_routes(events, frames, methods)
        frames += map(self._render_reply, replies)
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
        with suppress(TimeoutError):
            async with asyncio.timeout(_REPLIES_WITHIN_S):
                await self._until(lambda: not self._unconfirmed)
        for _ in self._unconfirmed:
            self._count(ReplyOutcome.UNCONFIRMED)
        self._unconfirmed.clear()
        self._returned = 0
        # A return comes before the confirm of its event.
        routed, unrouted = self._mandatory.values(), self._unrouted
        found = dict.fromkeys(routed, True) | dict.fromkeys(unrouted, False)
        self._mandatory.clear()
        self._unrouted.clear()
        return found

    # --- writing

    def _render(self, method: bytes, event: WorkerEvent, *, is_reply: bool) -> bytes:
        """Return the frames of the next publish."""
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
        self._unconfirmed[self._tag] = is_reply
        return method + self._frames.content(properties, event.body)

    def _check_routes(
        self,
        events: Sequence[WorkerEvent],
        frames: list[bytes],
        methods: Mapping[str, bytes],
    ) -> None:
        """Make the first event mandatory of each routing key whose check is due."""
        now_s = monotonic()
        due = {key for key in methods if self._route_due_s.get(key, 0.0) <= now_s}
        if not due:
            return
        exchange = self._names.events.encode()
        # The outcome of a duplicate has the id of the original's. With a `reply_to`, the return
        # of its reply would be taken for that of the event.
        replied = {event.id for event in events if event.reply_to is not None}
        for index, event in enumerate(events):
            key = event.routing_key
            if key in due and event.id not in replied:
                due.remove(key)
                self._route_due_s[key] = now_s + _PROBE_EVERY_S
                self._mandatory[event.id] = key
                method = self._frames.method(exchange, key.encode(), mandatory=True)
                frames[index] = method + frames[index][len(methods[key]) :]

    def _render_reply(self, event: WorkerEvent) -> bytes:
        """Return the frames of the next publish; none if it may not be sent."""
        queue = (event.reply_to or "").encode()
        # A receipt in a queue of bridge would be taken for a message or a command.
        is_own = queue.startswith(f"{self._names.namespace}.".encode())
        if is_own or not queue or len(queue) > _REPLY_TO_MAX_BYTES:
            self._count(ReplyOutcome.REFUSED)
        elif not self._may_reply:
            self._count(ReplyOutcome.NOT_PERMITTED)
        else:
            method = self._frames.method(b"", queue, mandatory=True)
            return self._render(method, event, is_reply=True)
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

    def _note_returned(self, raw_properties: bytes) -> None:
        id_ = (parse_properties(raw_properties).message_id or b"").decode()
        key = self._mandatory.pop(id_, None)
        if key is None:
            self._returned += 1  # its confirm follows
        else:
            self._unrouted.append(key)

    def _confirmed(self, confirm: Confirm) -> None:
        tags = [confirm.tag]
        if confirm.is_multiple:  # the oldest come first
            tags = list(takewhile(lambda tag: tag <= confirm.tag, self._unconfirmed))
        for tag in tags:
            if tag not in self._unconfirmed:  # a reply, later than it was waited for
                continue
            if not self._unconfirmed.pop(tag):
                self._events_left -= 1
                self._was_refused |= not confirm.is_ack
            elif self._returned and confirm.is_ack:
                self._returned -= 1
                self._count(ReplyOutcome.UNROUTABLE)
            else:
                is_sent = confirm.is_ack
                self._count(ReplyOutcome.SENT if is_sent else ReplyOutcome.UNCONFIRMED)
        self._changed.set()

    def _count(self, outcome: ReplyOutcome) -> None:
        self._metrics.event_replies.labels(outcome).inc()
