"""Browsing dead letters changes neither their order nor their number, however it ends."""

import asyncio
import sys

import pytest

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.browser import DeadLetterBrowser
from bridge.amqp.topology import Topology
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import Raw
from tests.integration.dead_letters import take_all
from tests.integration.operator.dead_letter_fixtures import (
    numbers,
    publish_dead_letters,
    ready,
)
from tests.local_node import LocalNode


@pytest.fixture
async def dead(raw: Raw, wanted: Topology, names: BrokerNames) -> str:
    """Declare the dead-letter queue, empty."""
    queue = next(queue for queue in wanted.queues if queue.name == names.dead)
    await raw.channel.exchange_declare(names.dead, exchange_type="fanout", durable=True)
    await raw.channel.queue_declare(
        queue.name, durable=True, arguments=dict(queue.arguments)
    )
    await raw.channel.queue_bind(queue.name, names.dead)
    return queue.name


async def browse(browser: DeadLetterBrowser, count: int) -> list[int]:
    """Return the numbers of the first `count` dead letters."""
    seen: list[Delivery] = []

    def take(one: Delivery) -> bool:
        seen.append(one)
        return len(seen) < count

    async with browser.session() as session:
        await session.read(take, at_most=count)
    return numbers(seen)


@pytest.mark.parametrize("depths", [(3, 50, 1), (300, 40, 2), (1200, 10, 1500, 5)])
async def test_sessions_of_any_depth_change_neither_order_nor_number(
    broker: LocalNode,
    address: BrokerAddress,
    names: BrokerNames,
    dead: str,
    depths: tuple[int, ...],
) -> None:
    """A short session after a long one must not move the head of the queue to its end."""
    await publish_dead_letters(broker, names, 2000)
    browser = DeadLetterBrowser(address, dead)

    for count in depths:
        assert await browse(browser, count) == list(range(count))

    assert numbers(await take_all(broker, dead)) == list(range(2000))


async def test_a_restarted_bridge_recognizes_messages_that_were_returned_before(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """The process forgot their number, but they have the flag `redelivered`."""
    await publish_dead_letters(broker, names, 2500)
    await browse(DeadLetterBrowser(address, dead), 2200)

    assert await browse(DeadLetterBrowser(address, dead), 3) == [0, 1, 2]

    assert numbers(await take_all(broker, dead)) == list(range(2500))


async def test_messages_that_arrive_during_a_session_stay_behind_the_others(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """The queue receives messages while an operator reads it."""
    await publish_dead_letters(broker, names, 100)
    browser = DeadLetterBrowser(address, dead)
    await browse(browser, 60)
    async with browser.session() as session:
        await session.read(lambda _one: True, at_most=80)
        await publish_dead_letters(broker, names, 50, start=100)

    assert await browse(browser, 10) == list(range(10))
    assert numbers(await take_all(broker, dead)) == list(range(150))


async def test_acked_messages_are_removed_and_the_others_keep_their_order(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """A redrive of some messages does not affect the others."""
    await publish_dead_letters(broker, names, 300)
    browser = DeadLetterBrowser(address, dead)
    await browse(browser, 200)
    seen: list[Delivery] = []
    async with browser.session() as session:
        await session.read(lambda one: not seen.append(one), at_most=90)  # type: ignore[func-returns-value] # append returns None: the session goes on
        await session.ack([one.tag for one in seen if int(one.body) % 3 == 0])

    await browse(browser, 5)

    left = [n for n in range(300) if n % 3 or n >= 90]
    assert numbers(await take_all(broker, dead)) == left


BROWSING = """
import asyncio, sys
from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.browser import DeadLetterBrowser

async def main():
    browser = DeadLetterBrowser(BrokerAddress((sys.argv[1],)), sys.argv[2], returned_count=int(sys.argv[3]))
    async with browser.session() as session:
        seen = []
        await session.read(lambda one: seen.append(1) or len(seen) < 20, at_most=20)
        print("browsing", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_killed_session_changes_neither_order_nor_number(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """RabbitMQ returns all unacked messages in order after kill -9."""
    await publish_dead_letters(broker, names, 600)
    browser = DeadLetterBrowser(address, dead)
    await browse(browser, 400)

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BROWSING, broker.url, dead, str(browser.returned_count),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30 * SLOW_FACTOR):
        assert await process.stdout.readline() == b"browsing\n"
    assert await ready(broker, dead) <= 200
    process.kill()
    await process.wait()

    async def is_returned() -> bool:
        return await ready(broker, dead) == 600

    await eventually(is_returned)
    assert await browse(browser, 30) == list(range(30))
    assert numbers(await take_all(broker, dead)) == list(range(600))


async def test_a_session_that_stops_early_cuts_its_connection_and_changes_nothing(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """RabbitMQ has delivered all returned messages, far more than the session reads."""
    await publish_dead_letters(broker, names, 7000)
    browser = DeadLetterBrowser(address, dead)
    assert len(await browse(browser, 7000)) == 7000

    assert await browse(browser, 2) == [0, 1]

    assert numbers(await take_all(broker, dead)) == list(range(7000))
