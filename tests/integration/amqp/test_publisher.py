"""Publishing against a real broker: an answer for every message, and the right one."""

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
from bridge.demo.private_node import LocalNode
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

LETTER = DeadLetter(Rejection(DeadLetterReason.BAD_USER, "no user"), attempt=1)
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
    """That is what the 202 of the HTTP door stands for."""
    async with publishing() as publisher:
        await publisher.publish(names.dead, b"ann", body=b"{}", properties=PLAIN)

        found = await raw.channel.basic_get(names.dead, no_ack=True)

    assert found.body == b"{}"
    assert found.routing_key == "ann"
    assert found.header.properties.delivery_mode == 2


async def test_a_thousand_publishes_at_a_time_are_all_confirmed(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """Any number may wait; the broker sees no more channels than there are places."""
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
    """By default the library takes a return for a success (traps 1.1 row 9)."""
    async with publishing() as publisher:
        await raw.channel.queue_unbind(names.dead, names.dead)

        with pytest.raises(PublishRefusedError, match="312 NO_ROUTE"):
            await publisher.dead_letter(delivery_of(b"\x00\x00"), LETTER)


async def test_a_binding_that_is_gone_comes_back(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """Nobody has to restart the bridge because somebody tidied up the broker."""
    async with publishing() as publisher:
        await raw.channel.queue_unbind(names.dead, names.dead)

        async def is_taken() -> bool:
            try:
                await publisher.dead_letter(delivery_of(b"\x00\x00"), LETTER)
            except PublishRefusedError:
                return False
            return True

        await eventually(is_taken)


async def test_an_exchange_that_is_not_there_is_refused_and_others_go_on(
    publishing: PublisherMaker, names: BrokerNames, metrics: Metrics
) -> None:
    """The broker closes the channel; only that publish may feel it."""
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


async def test_a_message_that_the_queue_rejects_is_refused(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """A full queue answers with a nack; the message is nowhere."""
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


async def test_returns_find_their_publish_although_all_have_one_message_id(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """The library finds it by message id, and producers may use one twice."""
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


@pytest.mark.parametrize("raw_properties", POISON.values(), ids=POISON)
async def test_poison_properties_go_out_untouched_and_come_back_without_harm(
    publishing: PublisherMaker,
    raw: Raw,
    names: BrokerNames,
    metrics: Metrics,
    raw_properties: bytes,
) -> None:
    """A dead letter keeps its producer's bytes; returned, they must not kill the connection."""
    sent = parse_properties(raw_properties)
    async with publishing() as publisher:
        with pytest.raises(PublishRefusedError, match="NO_ROUTE"):
            await publisher.publish(
                "", b"not.there", body=b"x" * 200_000, properties=sent
            )
        await publisher.dead_letter(delivery_of(raw_properties), LETTER)

        assert await raw.holds(names.dead, 1)
    assert reconnects(metrics, "publish") == 0


async def test_a_dead_letter_keeps_its_bytes_and_says_why(
    publishing: PublisherMaker, consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Redrive must be able to make the original of it, whatever it held."""
    odd = POISON["all at once"]
    original = delivery_of(odd, routing_key=b"\xff\xfe")
    async with publishing() as publisher, consuming() as taker:
        await publisher.dead_letter(original, LETTER)
        # Through the bridge's own reader, which shows the bytes.
        await raw.channel.queue_unbind(names.inbound_queue(), names.inbound)
        await raw.channel.exchange_bind(names.inbound, names.dead)
        await raw.channel.queue_bind(names.inbound_queue(), names.dead)
        await publisher.dead_letter(original, LETTER)
        (letter,) = await taker.take(1)

    found, table = letter.properties, letter.properties.headers
    before = parse_properties(odd)
    assert letter.body == original.body
    assert found.message_id == before.message_id
    assert found.timestamp == before.timestamp
    assert table is not None
    assert before.headers is not None
    # From 4.0 on RabbitMQ sorts them.
    assert set(iter_table(before.headers)) <= set(iter_table(table))
    assert header_bytes(table, Header.ROUTING_KEY) == b"\xff\xfe"
    assert header_bytes(table, Header.REASON) == b"bad_user"
    assert letter.routing_key == rb"\xff\xfe"


async def test_a_retry_comes_back_after_its_delay_as_the_next_attempt(
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


async def test_a_message_can_be_retried_again_and_again(
    publishing: PublisherMaker, consuming: IntakeMaker
) -> None:
    """The broker drops what it takes for a cycle; a copy must not look like one."""
    async with publishing() as publisher, consuming() as taker:
        delivery = delivery_of(b"\x00\x00")
        for attempt in range(2, 6):
            await publisher.retry(delivery, RetryAfter(attempt, 0.2), deadline_s=None)
            delivery = (await taker.take(attempt - 1))[-1]

    assert attempt_of(delivery) == 5


async def test_a_publish_while_the_broker_is_away_waits_and_then_says_so(
    proxy: TcpProxy, publishing: PublisherMaker, names: BrokerNames
) -> None:
    """The HTTP door answers 503 instead of hanging."""
    async with publishing(proxy.address) as publisher:
        proxy.close_door()
        proxy.cut()
        await eventually(lambda: not publisher.is_connected)

        with pytest.raises(BrokerUnavailableError, match="no answer within"):
            await publisher.publish(
                names.messages, b"ann", body=b"{}", properties=PLAIN, timeout_s=0.2
            )


async def test_a_publish_waits_for_a_broker_that_comes_back_in_time(
    proxy: TcpProxy, publishing: PublisherMaker, names: BrokerNames, raw: Raw
) -> None:
    """A short outage is nobody's business but ours."""
    async with publishing(proxy.address) as publisher:
        proxy.cut()
        await eventually(lambda: not publisher.is_connected)

        await publisher.publish(names.messages, b"ann", body=b"{}", properties=PLAIN)

    assert await raw.holds(names.inbound_queue(), 1)


@pytest.mark.parametrize("end", [TcpProxy.cut, TcpProxy.hang_up])
async def test_publishes_in_flight_fail_when_the_connection_is_lost(
    proxy: TcpProxy,
    publishing: PublisherMaker,
    names: BrokerNames,
    end: Callable[[TcpProxy], None],
) -> None:
    """Nobody may wait for a confirm that can never come, however the connection ends."""
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


async def test_a_publish_that_was_given_up_does_not_answer_for_the_next(
    proxy: TcpProxy, publishing: PublisherMaker, names: BrokerNames
) -> None:
    """The late return of the one must not be taken for the other's."""
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


async def test_while_the_broker_blocks_publishers_a_publish_times_out_and_later_works(
    broker: LocalNode, publishing: PublisherMaker, names: BrokerNames, raw: Raw
) -> None:
    """A memory alarm stops reading from publishers; nobody waits for ever (row 8)."""
    async with publishing() as publisher:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):  # so that some channels are open
                tasks.create_task(outcome(publisher, names, timeout_s=10))
        await broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            for _ in range(2):
                assert await outcome(publisher, names, timeout_s=0.5) == "unavailable"
        finally:
            await broker.ctl("set_vm_memory_high_watermark", "0.7")
        await publisher.publish(names.messages, b"ann", body=b"2", properties=PLAIN)

    # Of the two that failed, the first was on its way when the alarm came, and was taken
    # when it was over; the second was never sent.
    assert await raw.holds(names.inbound_queue(), 5 + 1 + 1)


def too_many_headers(publisher: Publisher) -> Properties:
    table = render_table({"h": b"x" * publisher.max_properties_bytes})
    return Properties(headers=table)


def too_long_string(_: Publisher) -> Properties:
    return Properties(message_id=b"x" * 256)


@pytest.mark.parametrize("make", [too_many_headers, too_long_string])
async def test_properties_that_fit_into_no_frame_are_refused_before_they_are_sent(
    publishing: PublisherMaker,
    names: BrokerNames,
    metrics: Metrics,
    make: Callable[[Publisher], Properties],
) -> None:
    """The broker would close the connection for all."""
    async with publishing() as publisher:
        with pytest.raises(PublishRefusedError, match="bytes"):
            await publisher.publish(
                names.messages, b"ann", body=b"", properties=make(publisher)
            )
        await publisher.publish(
            names.messages, b"ann", body=b"", properties=NO_PROPERTIES
        )

    assert reconnects(metrics, "publish") == 0


async def test_the_largest_properties_that_fit_are_taken(
    publishing: PublisherMaker, raw: Raw, names: BrokerNames
) -> None:
    """Dead letters are cut to this size: one byte more would close the connection."""
    async with publishing() as publisher:
        entry = render_table({"h": b""})
        room = publisher.max_properties_bytes - len(struct.pack(">HI", 0, 0) + entry)
        largest = Properties(headers=render_table({"h": b"x" * room}))

        await publisher.publish(names.messages, b"ann", body=b"{}", properties=largest)

        assert await raw.holds(names.inbound_queue(), 1)
