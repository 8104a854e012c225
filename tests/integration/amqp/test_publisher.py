"""Publishing to a real broker: every publish gets its own answer."""

import asyncio
import struct
from collections.abc import Callable

import pytest

from bridge.amqp.publish.publisher import Publisher
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery, Rejection
from bridge.core.properties import (
    NO_PROPERTIES,
    PERSISTENT,
    Properties,
    header_bytes,
    iter_table,
    parse_properties,
    render_table,
)
from bridge.core.settlement import DeadLetter, RetryAfter, attempt_of
from bridge.enums import (
    DeadLetterReason,
    Header,
)
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import (
    IntakeMaker,
    PublisherMaker,
    Raw,
    reconnects,
)
from tests.integration.amqp.poison import POISON
from tests.integration.amqp.proxy import TcpProxy
from tests.local_node import LocalNode

SETTLEMENT = DeadLetter(Rejection(DeadLetterReason.BAD_USER, "no user"), attempt=1)
PLAIN = Properties(delivery_mode=PERSISTENT)


def delivery_of(raw_properties: bytes, *, routing_key: bytes = b"ann") -> Delivery:
    return Delivery(
        tag=1,
        redelivered=False,
        exchange=b"bridge.messages",
        routing_key=routing_key,
        raw_properties=raw_properties,
        body=b"\xff not touched",
        queue="q.inbound.0",
    )


async def test_a_published_message_is_in_the_queue_when_publish_returns(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """The HTTP endpoint answers 202 after that."""
    async with publishing() as publisher:
        await publisher.publish(names.dead, b"ann", body=b"{}", properties=PLAIN)

        found = await raw.channel.basic_get(names.dead, no_ack=True)

    assert found.body == b"{}"
    assert found.routing_key == "ann"
    assert found.header.properties.delivery_mode == 2


async def test_a_thousand_concurrent_publishes_are_all_confirmed(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """Any number may wait, on a limited number of channels."""
    async with publishing() as publisher, asyncio.TaskGroup() as tasks:
        for number in range(1000):
            tasks.create_task(
                publisher.publish(
                    names.messages, b"ann", body=b"%d" % number, properties=PLAIN
                )
            )

    async def all_are_there() -> bool:
        return await raw.count(names.inbound_queue()) == 1000

    await eventually(all_are_there)


async def test_an_unroutable_message_is_refused(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """By default the library treats a returned message as published."""
    async with publishing() as publisher:
        await raw.channel.queue_unbind(names.dead, names.dead)

        with pytest.raises(PublishRefusedError, match="312 NO_ROUTE"):
            await publisher.dead_letter(delivery_of(b"\x00\x00"), SETTLEMENT)


async def test_a_missing_binding_is_restored(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """The bridge needs no restart after an operator deleted a binding."""
    async with publishing() as publisher:
        await raw.channel.queue_unbind(names.dead, names.dead)

        async def is_taken() -> bool:
            try:
                await publisher.dead_letter(delivery_of(b"\x00\x00"), SETTLEMENT)
            except PublishRefusedError:
                return False
            return True

        await eventually(is_taken)


async def test_a_missing_exchange_fails_only_its_own_publish(
    publishing: PublisherMaker, names: BrokerNames, metrics: Metrics
) -> None:
    """The broker closes the channel of that publish."""
    async with publishing() as publisher, asyncio.TaskGroup() as tasks:
        good = [
            tasks.create_task(
                publisher.publish(names.messages, b"ann", body=b"{}", properties=PLAIN)
            )
            for _ in range(50)
        ]
        for _ in range(3):
            with pytest.raises(PublishRefusedError, match="no exchange"):
                await publisher.publish(
                    "not.there", b"ann", body=b"{}", properties=PLAIN
                )

    assert all(task.exception() is None for task in good)
    assert reconnects(metrics, "publish") == 0


async def test_a_message_that_a_full_queue_rejects_is_refused(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """The queue answers with a nack and does not store the message."""
    full = f"{names.namespace}.full"
    await raw.channel.queue_declare(
        full,
        arguments={"x-max-length": 1, "x-overflow": "reject-publish"},
        exclusive=True,
    )

    async def fill(publisher: Publisher) -> None:
        for _ in range(10):
            await publisher.publish("", full.encode(), body=b"", properties=PLAIN)

    async with publishing() as publisher:
        with pytest.raises(PublishRefusedError, match="nack"):
            await fill(publisher)


async def test_returns_are_matched_if_all_messages_have_the_same_id(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """The library matches them by message id, which producers may use twice."""
    same = Properties(delivery_mode=PERSISTENT, message_id=b"one")
    queue = f"{names.namespace}.some"
    await raw.channel.queue_declare(queue, exclusive=True)

    async with publishing() as publisher:

        async def is_refused(number: int) -> bool:
            key = queue if number % 2 else "not.there"
            try:
                await publisher.publish("", key.encode(), body=b"same", properties=same)
            except PublishRefusedError:
                return True
            return False

        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(is_refused(number)) for number in range(200)]

    assert [task.result() for task in answers] == [
        number % 2 == 0 for number in range(200)
    ]
    assert await raw.holds(queue, 100)


async def test_concurrent_dead_letters_keep_their_order(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """A redrive sends the messages of a user in the order in which they came."""
    async with publishing() as publisher, asyncio.TaskGroup() as tasks:
        for number in range(200):
            letter = delivery_of(b"\x00\x00")
            letter.body = b"%d" % number
            tasks.create_task(publisher.dead_letter(letter, SETTLEMENT))

    found = [await raw.channel.basic_get(names.dead, no_ack=True) for _ in range(200)]
    assert [int(one.body) for one in found] == list(range(200))


async def test_no_return_is_missed_among_concurrent_publishes_in_order(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """They share a channel. A dead letter that is taken for published would be lost."""
    queue = f"{names.namespace}.some"
    await raw.channel.queue_declare(queue, exclusive=True)

    async with publishing() as publisher:

        async def is_refused(key: str) -> bool:
            try:
                await publisher.publish(
                    "", key.encode(), body=b"1", properties=PLAIN, in_order=True
                )
            except PublishRefusedError:
                return True
            return False

        for _ in range(20):
            async with asyncio.TaskGroup() as tasks:
                returned = [
                    tasks.create_task(is_refused("not.there" if odd else queue))
                    for odd in [False, True, False, True, False] * 10
                ]
            answers = [task.result() for task in returned]
            assert all(answers[1::5])
            assert all(answers[3::5])
            assert not await is_refused(queue)


@pytest.mark.parametrize("raw_properties", POISON.values(), ids=POISON)
async def test_invalid_properties_are_sent_unchanged_and_returned_without_an_error(
    publishing: PublisherMaker,
    raw: Raw,
    names: BrokerNames,
    metrics: Metrics,
    raw_properties: bytes,
) -> None:
    """Dead letters keep the producer's bytes, and a return must not end the connection."""
    sent = parse_properties(raw_properties)
    async with publishing() as publisher:
        with pytest.raises(PublishRefusedError, match="NO_ROUTE"):
            await publisher.publish(
                "", b"not.there", body=b"x" * 200_000, properties=sent
            )
        await publisher.dead_letter(delivery_of(raw_properties), SETTLEMENT)

        assert await raw.holds(names.dead, 1)
    assert reconnects(metrics, "publish") == 0


async def test_a_dead_letter_keeps_its_bytes_and_has_its_reason(
    publishing: PublisherMaker, consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """A redrive must be able to restore the original, whatever it contains."""
    invalid = POISON["all at once"]
    original = delivery_of(invalid, routing_key=b"\xff\xfe")
    async with publishing() as publisher, consuming() as taker:
        await publisher.dead_letter(original, SETTLEMENT)
        # Consumed by the bridge, whose reader shows the raw bytes.
        await raw.channel.queue_unbind(names.inbound_queue(), names.inbound)
        await raw.channel.exchange_bind(names.inbound, names.dead)
        await raw.channel.queue_bind(names.inbound_queue(), names.dead)
        await publisher.dead_letter(original, SETTLEMENT)
        (dead_letter,) = await taker.take(1)

    found, table = dead_letter.properties, dead_letter.properties.headers
    before = parse_properties(invalid)
    assert dead_letter.body == original.body
    assert found.message_id == before.message_id
    assert found.timestamp == before.timestamp
    assert table is not None
    assert before.headers is not None
    # RabbitMQ 4.0 and later sort them.
    assert set(iter_table(before.headers)) <= set(iter_table(table))
    assert header_bytes(table, Header.ROUTING_KEY) == b"\xff\xfe"
    assert header_bytes(table, Header.REASON) == b"bad_user"
    assert dead_letter.routing_key == rb"\xff\xfe"


async def test_a_retry_is_redelivered_after_its_delay_as_the_next_attempt(
    publishing: PublisherMaker, consuming: IntakeMaker
) -> None:
    """It waits in a queue of the broker, so a crash of the bridge does not lose it."""
    async with publishing() as publisher, consuming() as taker:
        await publisher.retry(
            delivery_of(POISON["all at once"]), RetryAfter(2, 0.2), deadline_s=9e9
        )
        (back,) = await taker.take(1)

    assert back.body == b"\xff not touched"
    assert back.routing_key == b"ann"
    assert attempt_of(back) == 2


async def test_a_message_can_be_retried_repeatedly(
    publishing: PublisherMaker, consuming: IntakeMaker
) -> None:
    """RabbitMQ drops messages in a dead-letter cycle; a retry must not look like one."""
    async with publishing() as publisher, consuming() as taker:
        delivery = delivery_of(b"\x00\x00")
        for attempt in range(2, 6):
            await publisher.retry(delivery, RetryAfter(attempt, 0.2), deadline_s=None)
            delivery = (await taker.take(attempt - 1))[-1]

    assert attempt_of(delivery) == 5


async def test_a_publish_without_a_connection_times_out(
    proxy: TcpProxy,
    publishing: PublisherMaker,
    names: BrokerNames,
    metrics: Metrics,
) -> None:
    """The HTTP endpoint answers 503 instead of hanging."""
    async with publishing(proxy.address) as publisher:
        proxy.refuse()
        proxy.cut()
        await eventually(lambda: reconnects(metrics, "publish") == 1)

        with pytest.raises(BrokerUnavailableError, match="no answer within"):
            await publisher.publish(
                names.messages, b"ann", body=b"{}", properties=PLAIN, timeout_s=0.2
            )


async def test_a_publish_waits_for_the_connection_to_be_restored(
    proxy: TcpProxy,
    publishing: PublisherMaker,
    names: BrokerNames,
    raw: Raw,
    metrics: Metrics,
) -> None:
    """Callers do not notice a short outage."""
    async with publishing(proxy.address) as publisher:
        proxy.cut()
        await eventually(lambda: reconnects(metrics, "publish") == 1)

        await publisher.publish(names.messages, b"ann", body=b"{}", properties=PLAIN)

    assert await raw.holds(names.inbound_queue(), 1)


@pytest.mark.parametrize("end", [TcpProxy.cut, TcpProxy.hang_up])
async def test_publishes_in_flight_fail_when_the_connection_is_lost(
    proxy: TcpProxy,
    publishing: PublisherMaker,
    names: BrokerNames,
    end: Callable[[TcpProxy], None],
) -> None:
    """No caller waits for a confirm that can never arrive, however the connection ends."""
    async with publishing(proxy.address) as publisher:
        await publisher.publish(names.messages, b"ann", body=b"{}", properties=PLAIN)
        proxy.freeze()
        async with asyncio.TaskGroup() as tasks:
            answers = [
                tasks.create_task(outcome(publisher, names, timeout_s=20 * SLOW_FACTOR))
                for _ in range(5)
            ]
            await eventually(lambda: proxy.is_holding)
            end(proxy)

    assert {task.result() for task in answers} == {"unavailable"}


async def outcome(publisher: Publisher, names: BrokerNames, *, timeout_s: float) -> str:
    try:
        await publisher.publish(
            names.messages, b"ann", body=b"{}", properties=PLAIN, timeout_s=timeout_s
        )
    except BrokerUnavailableError:
        return "unavailable"
    return "published"


async def test_the_late_return_of_a_timed_out_publish_is_not_matched_to_the_next(
    proxy: TcpProxy, publishing: PublisherMaker, names: BrokerNames
) -> None:
    """Its channel is not used again before the broker has confirmed it."""
    async with publishing(proxy.address) as publisher:
        await publisher.publish(names.messages, b"ann", body=b"{}", properties=PLAIN)
        proxy.freeze()
        with pytest.raises(BrokerUnavailableError):
            await publisher.publish(
                "", b"not.there", body=b"{}", properties=PLAIN, timeout_s=0.1
            )
        proxy.thaw()

        for _ in range(20):
            await publisher.publish(
                names.messages, b"ann", body=b"{}", properties=PLAIN
            )


async def test_a_publish_times_out_during_a_memory_alarm_and_succeeds_after_it(
    broker: LocalNode, publishing: PublisherMaker, names: BrokerNames, raw: Raw
) -> None:
    """RabbitMQ stops reading from publishers; no caller waits forever."""
    async with publishing() as publisher:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):  # so that some channels are open
                tasks.create_task(outcome(publisher, names, timeout_s=10))
        async with broker.memory_alarm():
            for _ in range(2):
                assert await outcome(publisher, names, timeout_s=0.5) == "unavailable"
        await publisher.publish(names.messages, b"ann", body=b"2", properties=PLAIN)

    # Of the two that failed, the first was in the socket when the alarm began and was stored
    # after it; the second was never sent.
    assert await raw.holds(names.inbound_queue(), 5 + 1 + 1)


def too_many_headers(publisher: Publisher) -> Properties:
    table = render_table({"h": b"x" * publisher.max_properties_bytes})
    return Properties(headers=table)


def too_long_string(_: Publisher) -> Properties:
    return Properties(message_id=b"x" * 256)


@pytest.mark.parametrize("make", [too_many_headers, too_long_string])
async def test_properties_above_one_frame_are_refused_before_they_are_sent(
    publishing: PublisherMaker,
    names: BrokerNames,
    metrics: Metrics,
    make: Callable[[Publisher], Properties],
) -> None:
    """The broker would close the connection of every publish in flight."""
    async with publishing() as publisher:
        with pytest.raises(PublishRefusedError, match="bytes"):
            await publisher.publish(
                names.messages, b"ann", body=b"", properties=make(publisher)
            )
        await publisher.publish(
            names.messages, b"ann", body=b"", properties=NO_PROPERTIES
        )

    assert reconnects(metrics, "publish") == 0


async def test_properties_that_fill_one_frame_are_published(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """Dead letters are cut to this size: one more byte would close the connection."""
    async with publishing() as publisher:
        entry = render_table({"h": b""})
        room = publisher.max_properties_bytes - len(struct.pack(">HI", 0, 0) + entry)
        largest = Properties(headers=render_table({"h": b"x" * room}))

        await publisher.publish(names.messages, b"ann", body=b"{}", properties=largest)

        assert await raw.holds(names.inbound_queue(), 1)
