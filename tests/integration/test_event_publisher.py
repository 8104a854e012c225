"""Events for workers reach the broker: in order, at least once, and after every outage."""

import asyncio
import gc
import json
import re
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from structlog.testing import capture_logs
from yarl import URL

from bridge.amqp.connection import BrokerAddress, BrokerConnection, Purpose, connected
from bridge.amqp.frame_reader import (
    Confirm,
    OnConfirm,
    OnReturned,
    RequestReader,
    Returned,
)
from bridge.amqp.publish.event_channel import (
    DirectReplies,
    EventChannel,
    open_event_channel,
)
from bridge.core.broker_names import BrokerNames
from bridge.core.journal import Journal
from bridge.core.receipts import WorkerEvent
from bridge.enums import PresenceChange
from bridge.errors import StoreUnavailableError
from bridge.event_publisher import EventPublisher
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.events import (
    consume_events,
    consume_replies,
    queue_without_room,
    refuse_all,
)
from tests.local_node import LocalNode


@dataclass
class ListOutbox:
    """An event outbox in a list, which may be unavailable."""

    events: list[WorkerEvent] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    asked: int = 0
    is_away: bool = False
    wake: Callable[[], None] = lambda: None

    def on_events(self, wake: Callable[[], None]) -> None:
        """Note whom to wake."""
        self.wake = wake

    async def pending_events(
        self,
        limit: int,
        *,
        max_bytes: int = 0,  # noqa: ARG002 - of the protocol
    ) -> Sequence[WorkerEvent]:
        """Return the oldest."""
        self.asked += 1
        self._check()
        return self.events[:limit]

    async def confirm_events(self, events: Sequence[WorkerEvent]) -> None:
        """Delete them."""
        self._check()
        self.confirmed += [event.id for event in events]
        ids = {event.id for event in events}
        self.events = [event for event in self.events if event.id not in ids]

    async def add_event(self, event: WorkerEvent) -> None:
        """Add one and wake."""
        self.events.append(event)
        self.wake()

    async def drop_presence_events(self, limit: int) -> int:
        """Drop the oldest."""
        dropped = [one for one in self.events if one.is_presence][:limit]
        self.events = [one for one in self.events if one not in dropped]
        self.dropped += [event.id for event in dropped]
        return len(dropped)

    async def events_depth(self) -> tuple[int, float | None]:
        """Return the number, and a fixed age."""
        self._check()
        return len(self.events), 7.0 if self.events else None

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailableError("memory:", "away")


@dataclass
class WallClock:
    """The publisher's clock."""

    now_s: float = 1_800_000_000.0

    def __call__(self) -> float:
        """Return Unix time."""
        return self.now_s


@dataclass
class Stage:
    """A publisher that runs, and what a worker and a producer have received from it."""

    publisher: EventPublisher
    outbox: ListOutbox
    metrics: Metrics
    channel: aio_pika.abc.AbstractChannel
    namespace: str
    journal: Journal
    wall: WallClock
    received: list[AbstractIncomingMessage] = field(default_factory=list)
    replies: list[AbstractIncomingMessage] = field(default_factory=list)
    reply_to: str = ""

    async def consume(self) -> None:
        """Let the worker receive all events from now on."""
        await consume_events(self.channel, self.namespace, self.received.append)

    async def begin(self) -> None:
        """Add the first event, and wait until the worker has received it."""
        await self.add(1)
        await eventually(lambda: self.ids == ["id-1"])

    async def add(self, *numbers: int, **fields: str) -> None:
        """Add an event for each number, for ann."""
        for number in numbers:
            body = json.dumps({"n": number}).encode()
            await self.outbox.add_event(
                WorkerEvent(
                    f"id-{number}", "message.delivered", "ann", body, 0.0, **fields
                )
            )

    @property
    def ids(self) -> list[str | None]:
        """The ids that the worker has received, in order."""
        return [message.message_id for message in self.received]

    @property
    def unrouted(self) -> int:
        """How many events were returned by the broker."""
        key = "message.delivered"
        return self.count("bridge_events_unrouted", routing_key=key)

    def count(self, name: str, **labels: str) -> int:
        """Return a counter of the publisher."""
        return self.metrics.total(name, **labels)


@asynccontextmanager
async def publishing(
    broker: LocalNode, namespace: str, *, url: str = "", timeout_s: float = 15.0
) -> AsyncIterator[Stage]:
    """Run a publisher, a worker with a queue bound to the events, and a producer."""
    names, metrics, outbox = BrokerNames(namespace), Metrics(), ListOutbox()
    address = BrokerAddress((url or broker.url,), timeout_s=timeout_s)
    journal, wall = Journal(), WallClock()
    publisher = EventPublisher(
        address,
        names,
        outbox,
        max_waiting=3,
        metrics=metrics,
        journal=journal,
        wall_s=wall,
    )
    async with (
        await aio_pika.connect(broker.url) as connection,
        asyncio.TaskGroup() as tasks,
    ):
        channel = await connection.channel()
        stage = Stage(publisher, outbox, metrics, channel, namespace, journal, wall)
        await stage.consume()
        stage.reply_to = await consume_replies(channel, stage.replies.append)
        running = tasks.create_task(publisher.run(), name="publisher")
        yield stage
        running.cancel()


async def account(broker: LocalNode, namespace: str, *, write: str) -> str:
    """Make an account of bridge with this permission to write; return the URL for it."""
    pattern = f"^{namespace}\\."
    await broker.add_user(namespace, "secret", pattern, write, pattern)
    return str(URL(broker.url).with_user(namespace).with_password("secret"))


async def test_events_are_published_in_order_and_confirmed_to_the_store(
    broker: LocalNode, namespace: str
) -> None:
    """Their ids let a worker drop repeats; several batches follow without a pause."""
    async with publishing(broker, namespace) as stage:
        numbers = range(1000)
        await stage.add(*numbers)
        await eventually(lambda: not stage.outbox.events)
        await eventually(lambda: len(stage.received) == 1000)

        assert stage.ids == [f"id-{number}" for number in numbers]
        assert stage.outbox.confirmed == stage.ids
        first = stage.received[0]
        assert json.loads(first.body) == {"n": 0}
        assert first.routing_key == "message.delivered"
        assert first.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert first.content_type == "application/json"
        name, label = "bridge_events_published", "message.delivered"
        assert stage.count(name, routing_key=label) == 1000
        assert stage.publisher.problem is None


async def test_an_event_is_published_at_once_when_the_store_wakes_the_publisher(
    broker: LocalNode, namespace: str
) -> None:
    """The wait for the outcome of a message is a round trip, not an interval."""
    async with publishing(broker, namespace) as stage:
        await stage.begin()
        asked = stage.outbox.asked
        for number in range(2, 22):
            await stage.add(number)
            await eventually(partial(is_received, stage, f"id-{number}"))

        # Each event took about three questions. The interval alone would be a second each.
        assert stage.outbox.asked - asked < 200


def is_received(stage: Stage, event_id: str) -> bool:
    """Return whether the worker has the event."""
    return event_id in stage.ids


async def test_an_event_that_no_queue_is_bound_for_is_dropped_and_confirmed(
    broker: LocalNode, namespace: str
) -> None:
    """
    Receipts need no consumer. An operator learns it once, until a queue is there.

    The warning may stay after a queue was bound, so it says when that was checked.
    """
    with capture_logs() as logs:
        async with publishing(broker, namespace) as stage:
            publisher = stage.publisher
            await stage.channel.exchange_delete(f"{namespace}.events")
            await stage.add(1)
            await eventually(lambda: stage.outbox.confirmed == ["id-1"])
            assert stage.unrouted == 1
            problem = f"no queue is bound to {namespace}.events for message.delivered"
            time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
            pattern = rf"{problem} \(checked {time}\): RabbitMQ drops .*"
            first = str(publisher.unrouted)
            assert re.fullmatch(pattern, first)
            await stage.add(2)  # within the minute
            await eventually(lambda: not stage.outbox.events)
            assert stage.unrouted == 1

            stage.wall.now_s += 61
            await stage.add(3)
            await eventually(lambda: not stage.outbox.events)
            assert stage.unrouted == 2
            assert re.fullmatch(pattern, str(publisher.unrouted))
            assert publisher.unrouted != first

            await stage.consume()
            stage.wall.now_s -= 3600  # an hour that the clock was wrong
            await stage.add(4)
            await eventually(lambda: stage.ids == ["id-4"] and not stage.outbox.events)
            assert publisher.unrouted is None
            assert stage.unrouted == 2

    assert [line["event"] for line in logs].count("events.unrouted") == 1


async def test_a_returned_reply_is_not_taken_for_the_event_of_the_original(
    broker: LocalNode, namespace: str
) -> None:
    """The outcome of a duplicate with a `reply_to` has the id of the original's."""
    async with publishing(broker, namespace) as stage:
        await stage.add(1)
        await stage.add(1, reply_to="no-such-queue")  # in the same batch
        await eventually(lambda: not stage.outbox.events and len(stage.ids) == 2)

        assert stage.publisher.unrouted is None
        assert stage.unrouted == 0
        assert stage.count("bridge_event_replies", outcome="unroutable") == 1
        assert stage.count("bridge_event_replies", outcome="sent") == 0


async def test_receipts_for_a_reply_to_do_not_lead_to_a_warning(
    broker: LocalNode, namespace: str
) -> None:
    """Their producer receives them. Others of the same routing key may need a queue."""
    async with publishing(broker, namespace) as stage:
        await stage.channel.exchange_delete(f"{namespace}.events")
        await stage.add(1, 2, reply_to=stage.reply_to)
        await stage.add(3, reply_to="no-such-queue")
        await eventually(lambda: not stage.outbox.events)
        assert stage.publisher.unrouted is None
        await stage.add(4, reply_to="no-such-queue")
        await stage.add(5)
        await eventually(lambda: not stage.outbox.events)
        assert "message.delivered" in str(stage.publisher.unrouted)
        assert stage.unrouted == 1
        await eventually(
            lambda: stage.count("bridge_event_replies", outcome="unroutable") == 2
        )
        assert stage.count("bridge_event_replies", outcome="sent") == 2


async def test_a_reply_goes_to_its_queue_with_the_correlation_id(
    broker: LocalNode, namespace: str
) -> None:
    """The receipt reaches the producer, and still everyone who consumes the events."""
    async with publishing(broker, namespace) as stage:
        await stage.add(1, reply_to=stage.reply_to, correlation_id="c-1")
        await eventually(lambda: len(stage.replies) == 1 and len(stage.received) == 1)

        [reply] = stage.replies
        assert reply.correlation_id == "c-1"
        assert reply.message_id == "id-1"
        assert json.loads(reply.body) == {"n": 1}
        await eventually(lambda: stage.count("bridge_event_replies", outcome="sent"))


async def test_replies_to_no_queue_or_to_a_queue_of_bridge_are_counted_and_not_retried(
    broker: LocalNode, namespace: str
) -> None:
    """A hostile producer could feed bridge its own output, or fill the store without a limit."""
    async with publishing(broker, namespace) as stage:
        hostile = await stage.channel.declare_queue(
            f"{namespace}.inbound.0", exclusive=True
        )
        await stage.add(
            1, reply_to=f"{namespace}.no-such-queue-of-mine"[len(namespace) :]
        )
        await stage.add(2, reply_to=hostile.name)
        await stage.add(3, reply_to="x" * 256)
        await stage.add(4, reply_to="")
        await stage.add(5, reply_to=stage.reply_to)
        await eventually(lambda: len(stage.replies) == 1 and not stage.outbox.events)

        assert stage.ids == [f"id-{number}" for number in range(1, 6)]
        assert await hostile.get(fail=False) is None
        replies = "bridge_event_replies"
        assert stage.count(replies, outcome="unroutable") == 1
        assert stage.count(replies, outcome="refused") == 3
        assert stage.count(replies, outcome="sent") == 1


async def test_a_malformed_direct_reply_to_ends_the_connection_and_holds_up_nothing(
    broker: LocalNode, namespace: str
) -> None:
    """RabbitMQ decodes it without checks. It is not sent again, nor are others for a while."""
    malformed = "amq.rabbitmq.reply-to.AAAA.BBBB"
    async with publishing(broker, namespace) as stage:
        await stage.begin()
        await stage.add(2, reply_to=malformed)
        await stage.add(3, reply_to=stage.reply_to)  # in the same batch
        await eventually(lambda: stage.ids == ["id-1", "id-2", "id-3"])
        await eventually(lambda: not stage.outbox.events)
        await stage.add(4, reply_to=malformed)
        await stage.add(5, reply_to=stage.reply_to)
        await eventually(lambda: len(stage.replies) == 2)
        await eventually(lambda: not stage.outbox.events)

        assert stage.ids == [f"id-{number}" for number in range(1, 6)]  # each once
        replies = "bridge_event_replies"
        assert stage.count(replies, outcome="unconfirmed") == 1
        assert stage.count(replies, outcome="refused") == 1
        assert stage.count("bridge_broker_reconnects", purpose="events") == 1


async def test_a_reply_that_is_refused_by_a_full_queue_holds_up_nothing(
    broker: LocalNode, namespace: str
) -> None:
    """The queue belongs to a producer, so bridge cannot wait for it to have room."""
    async with publishing(broker, namespace) as stage:
        full = await queue_without_room(stage.channel)
        await stage.add(1, reply_to=full.name)
        await stage.add(2)
        await eventually(lambda: stage.outbox.confirmed == ["id-1", "id-2"])

        assert stage.count("bridge_event_replies", outcome="unconfirmed") == 1


async def test_without_the_permission_for_replies_only_the_events_are_published(
    broker: LocalNode, namespace: str
) -> None:
    """The documented permissions have none for the default exchange."""
    pattern = f"^{namespace}\\."
    url = await account(broker, namespace, write=pattern)
    async with publishing(broker, namespace, url=url) as stage:
        await stage.add(1, 2, reply_to=stage.reply_to)
        await stage.add(3)
        await eventually(lambda: stage.ids == ["id-1", "id-2", "id-3"])
        await eventually(lambda: not stage.outbox.events)

        assert stage.count("bridge_event_replies", outcome="not_permitted") == 2
        assert stage.replies == []


async def test_a_deleted_exchange_is_declared_again(
    broker: LocalNode, namespace: str
) -> None:
    """The publish of an event closes the channel then, and no other part notices."""
    async with publishing(broker, namespace) as stage:
        await stage.begin()
        with capture_logs() as logs:
            await stage.channel.exchange_delete(f"{namespace}.events")
            await stage.add(2)
            await eventually(lambda: stage.publisher.problem is not None)
            assert "no exchange" in str(stage.publisher.problem)
            assert "restart the workers" in str(stage.publisher.problem)
            await eventually(lambda: stage.outbox.confirmed == ["id-1", "id-2"])
            await stage.consume()  # the binding was deleted, too
            await stage.add(3)
            await eventually(lambda: "id-3" in stage.ids)

        events = [line["event"] for line in logs]
        assert events.count("events.waiting") == events.count("events.resumed") == 1


async def test_events_wait_while_the_permission_is_missing_and_follow_it(
    broker: LocalNode, namespace: str
) -> None:
    """It is logged once, with the fix, and the store keeps the events."""
    pattern = f"^{namespace}\\."
    url = await account(broker, namespace, write="^$")
    with capture_logs() as logs:
        async with publishing(broker, namespace, url=url) as stage:
            await stage.add(1)
            await eventually(lambda: "ACCESS_REFUSED" in str(stage.publisher.problem))
            asked = stage.outbox.asked
            await eventually(lambda: stage.outbox.asked > asked + 2)
            assert stage.ids == []
            await broker.set_permissions(namespace, pattern, pattern, pattern)
            await eventually(lambda: stage.ids == ["id-1"], within_s=30)
            await eventually(lambda: stage.publisher.problem is None)

    waiting = [line for line in logs if line["event"] == "events.waiting"]
    assert len(waiting) == 1
    assert "bridge check" in waiting[0]["problem"]


async def test_events_wait_during_an_alarm_of_the_broker(
    broker: LocalNode, namespace: str
) -> None:
    """Afterwards each is there; one that was sent before the alarm was known may be there twice."""
    async with publishing(broker, namespace, timeout_s=2) as stage:
        await stage.begin()
        async with broker.memory_alarm():
            await stage.add(2, 3, 4)
            await eventually(
                lambda: "blocks" in str(stage.publisher.problem), within_s=20
            )
            await eventually(lambda: stage.publisher.full is not None)
            assert "3 events for workers wait" in str(stage.publisher.full)
            assert stage.metrics.registry.get_sample_value("bridge_events_waiting") == 3
        await eventually(lambda: not stage.outbox.events, within_s=30)
        await eventually(lambda: set(stage.ids) == {f"id-{n}" for n in range(1, 5)})
        await eventually(lambda: stage.publisher.full is None)


async def test_the_bound_for_waiting_events_holds_while_confirms_are_missing(
    broker: LocalNode, namespace: str
) -> None:
    """A publish waits for an alarm to end, and meanwhile the store has more and more events."""
    async with publishing(broker, namespace, timeout_s=60 * SLOW_FACTOR) as stage:
        await stage.begin()
        change = WorkerEvent("ann-online", "user.online", "ann", b"{}", 0.0)
        async with broker.memory_alarm():
            await stage.outbox.add_event(change)
            await eventually(lambda: stage.publisher._is_publishing)
            await stage.add(2, 3)
            # A change of presence makes room, even if it was sent and is not confirmed.
            await eventually(lambda: stage.outbox.dropped == ["ann-online"])
            await stage.add(4)
            await eventually(lambda: stage.publisher.full is not None)
            assert "has not confirmed them" in str(stage.publisher.full)
            assert stage.ids == ["id-1"]
        await eventually(lambda: stage.publisher.full is None, within_s=30)
        sent = ["id-1", "ann-online", "id-2", "id-3", "id-4"]
        await eventually(lambda: stage.ids == sent)
        assert stage.outbox.events == []


async def test_events_about_presence_hold_up_no_message(
    broker: LocalNode, namespace: str
) -> None:
    """While the broker takes none, the oldest of them make room for receipts."""
    async with publishing(broker, namespace, timeout_s=2) as stage:
        await refuse_all(stage.channel, f"{namespace}.events")
        ids = [f"user-{number}" for number in range(6)]
        for event_id in ids:
            event = WorkerEvent(event_id, "user.online", "ann", b"{}", 0.0)
            await stage.outbox.add_event(event)
        await stage.add(1)
        await eventually(lambda: stage.outbox.dropped == ids[:5], within_s=30)
        assert stage.publisher.full is None
        await stage.add(2, 3)
        await eventually(lambda: stage.publisher.full is not None, within_s=30)
        assert stage.outbox.dropped == ids
        assert stage.count("bridge_presence_events_dropped") == 6
        assert len(stage.outbox.events) == 3


async def test_a_batch_that_is_not_noted_in_the_store_is_repeated_with_the_same_ids(
    broker: LocalNode, namespace: str
) -> None:
    """At least once: the publish comes first, and then its note."""
    async with publishing(broker, namespace) as stage:
        await stage.begin()
        stage.outbox.is_away = True
        await eventually(lambda: "away" in str(stage.publisher.problem))
        await stage.add(2)
        stage.outbox.is_away = False
        await eventually(lambda: stage.ids == ["id-1", "id-2"])


async def test_an_event_does_not_wait_longer_after_a_long_outage_of_the_store(
    broker: LocalNode, namespace: str
) -> None:
    """Part of a cluster may be away for hours; the events of the others must not wait."""
    async with publishing(broker, namespace) as stage:
        await stage.begin()
        stage.outbox.is_away = True
        asked = stage.outbox.asked
        await eventually(lambda: stage.outbox.asked >= asked + 6, within_s=60)
        stage.outbox.is_away = False
        asked = stage.outbox.asked
        await stage.add(2)
        await eventually(lambda: stage.ids == ["id-1", "id-2"], within_s=60)

        # It is asked once a second while it waits; the longest pause has 15 seconds.
        assert stage.outbox.asked - asked < 8


async def open_channel(
    connection: BrokerConnection[RequestReader],
    namespace: str,
    *,
    metrics: Metrics | None = None,
    direct: DirectReplies | None = None,
) -> EventChannel:
    """Open a channel for events without a publisher."""
    return await open_event_channel(
        connection,
        BrokerNames(namespace),
        timeout_s=15.0,
        metrics=metrics or Metrics(),
        direct=direct or DirectReplies(),
    )


async def test_channels_that_were_replaced_are_freed(
    broker: LocalNode, namespace: str
) -> None:
    """While a queue is full, a channel is replaced several times a minute, for days."""
    address = BrokerAddress((broker.url,))
    async with connected(
        address, purpose=Purpose.EVENTS, reader=RequestReader
    ) as connection:
        opened: list[weakref.ref[EventChannel]] = []
        for _ in range(3):
            channel = await open_channel(connection, namespace)
            await channel.close()
            opened.append(weakref.ref(channel))
        del channel

        def are_freed() -> bool:
            gc.collect()
            return not any(each() for each in opened[:2])

        await eventually(are_freed)


async def test_published_events_leave_nothing_in_memory(
    broker: LocalNode, namespace: str
) -> None:
    """The channel lives for months."""
    address = BrokerAddress((broker.url,))
    event = WorkerEvent("1", "message.delivered", "ann", b"{}", 0.0)
    async with connected(
        address, purpose=Purpose.EVENTS, reader=RequestReader
    ) as connection:
        channel = await open_channel(connection, namespace)
        await channel.publish([event])
        gc.collect()
        before = count_futures()
        for _ in range(50):
            await channel.publish([event])
        gc.collect()
        assert count_futures() < before + 25


def count_futures() -> int:
    """Return how many futures exist."""
    return sum(isinstance(each, asyncio.Future) for each in gc.get_objects())


class ForgetfulReader(RequestReader):
    """A reader to which the broker confirms events, and no replies."""

    def subscribe_publishes(
        self,
        channel: int,
        on_confirm: OnConfirm,
        on_returned: OnReturned,
    ) -> None:
        """Drop each second confirm: a reply follows each event."""

        def confirmed(confirm: Confirm) -> None:
            if confirm.tag % 2:
                on_confirm(confirm)

        super().subscribe_publishes(channel, confirmed, on_returned)


async def test_replies_that_are_returned_and_not_confirmed_leave_nothing_in_memory(
    broker: LocalNode, namespace: str
) -> None:
    """A producer may name a queue that does not exist in each of its messages."""
    async with connected(
        BrokerAddress((broker.url,)), purpose=Purpose.EVENTS, reader=ForgetfulReader
    ) as connection:
        channel = await open_channel(connection, namespace)
        sizes: list[int] = []
        for number in range(3):
            event = WorkerEvent(f"{number}", "e", "ann", b"{}", 0.0, "no-such-queue")
            await channel.publish([event])
            fields = vars(channel).values()
            sizes.append(
                sum(len(each) for each in fields if isinstance(each, set | dict))
            )
        assert sizes[0] == sizes[2]


class LateReader(ForgetfulReader):
    """A reader that also keeps returns, until they are passed on."""

    def subscribe_publishes(
        self, channel: int, on_confirm: OnConfirm, on_returned: OnReturned
    ) -> None:
        """Keep what would be passed on."""
        self._kept: list[Returned] = []
        self._on_late = on_returned
        super().subscribe_publishes(channel, on_confirm, self._kept.append)

    def pass_on(self) -> None:
        """Pass on what was kept."""
        for each in self._kept:
            self._on_late(each)


async def test_a_late_return_of_a_reply_is_not_taken_for_that_of_an_event(
    broker: LocalNode, namespace: str
) -> None:
    """The outcome of a duplicate without a `reply_to` has the id of the original's."""
    async with (
        await aio_pika.connect(broker.url) as worker,
        connected(
            BrokerAddress((broker.url,)), purpose=Purpose.EVENTS, reader=LateReader
        ) as connection,
    ):
        channel = await open_channel(connection, namespace)
        await consume_events(await worker.channel(), namespace, lambda _: None)
        event = WorkerEvent("1", "message.delivered", "ann", b"{}", 0.0)
        replied = replace(event, reply_to="no-such-queue")
        assert await channel.publish([replied]) == {}
        published = asyncio.create_task(channel.publish([event]))
        await asyncio.sleep(0)
        connection.reader.pass_on()

        assert await published == {"message.delivered": True}


class LosingReader(RequestReader):
    """A reader that can end its connection as soon as an event is confirmed."""

    lose: Callable[[], None] | None = None

    def subscribe_publishes(
        self, channel: int, on_confirm: OnConfirm, on_returned: OnReturned
    ) -> None:
        """Pass confirms on, and end the connection."""

        def confirmed(confirm: Confirm) -> None:
            on_confirm(confirm)
            if self.lose is not None:
                self.lose()

        super().subscribe_publishes(channel, confirmed, on_returned)


@pytest.mark.parametrize("with_another", [True, False])
async def test_a_loss_before_direct_replies_are_sent_does_not_stop_later_ones(
    broker: LocalNode, namespace: str, *, with_another: bool
) -> None:
    """They were not its cause."""
    metrics, direct = Metrics(), DirectReplies()
    async with connected(
        BrokerAddress((broker.url,)), purpose=Purpose.EVENTS, reader=LosingReader
    ) as connection:
        channel = await open_channel(
            connection, namespace, metrics=metrics, direct=direct
        )
        connection.reader.lose = connection.abort
        other = WorkerEvent("1", "message.delivered", "ann", b"{}", 0.0, "a-queue")
        events = [replace(other, id="2", reply_to="amq.rabbitmq.reply-to.x.y")]
        await channel.publish([other, *events] if with_another else events)

        assert direct.are_allowed
        unconfirmed = metrics.total("bridge_event_replies", outcome="unconfirmed")
        assert unconfirmed == 1 + with_another


async def test_published_returns_when_the_first_event_comes_without_a_broker(
    namespace: str,
) -> None:
    """Its connection was never open, so nothing can be lost with it."""
    address = BrokerAddress(("amqp://127.0.0.1:1/",))
    outbox = ListOutbox([WorkerEvent("1", "e", "ann", b"{}", 0.0)])
    publisher = EventPublisher(
        address,
        BrokerNames(namespace),
        outbox,
        max_waiting=3,
        metrics=Metrics(),
        journal=Journal(),
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(publisher.run(), name="publisher")
        async with asyncio.timeout(20):
            await publisher.published(within_s=0.1)
        running.cancel()
    assert outbox.events


async def test_published_returns_when_all_is_published_or_nothing_can_be(
    broker: LocalNode, namespace: str
) -> None:
    """A shutdown waits for it, and must not wait for a broker that is away."""
    async with publishing(broker, namespace) as stage:
        async with asyncio.timeout(20):
            await stage.publisher.published(within_s=60)
            await stage.add(1, 2, 3)
            await stage.publisher.published(within_s=60)
        stage.outbox.is_away = True
        async with asyncio.timeout(20):
            await stage.publisher.published(within_s=60)


async def test_published_changes_of_presence_are_in_the_journal(
    broker: LocalNode, namespace: str
) -> None:
    """In the record of presence: they are about no message."""
    async with publishing(broker, namespace) as stage:
        for key in ("user.online", "user.offline"):
            event = WorkerEvent(key, key, "ann", b'{"user": "ann"}', 0.0)
            await stage.outbox.add_event(event)
        journal = stage.journal
        await eventually(lambda: len(journal.presence_of("ann", limit=9)) == 2)

    changes = [change for _, change in journal.presence_of("ann", limit=9)]
    assert changes == [PresenceChange.OFFLINE, PresenceChange.ONLINE]
