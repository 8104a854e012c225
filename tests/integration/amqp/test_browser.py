"""A look at dead letters changes neither their order nor their number, whatever ends it."""

import asyncio
import sys

import pytest

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.browser import ReturnedLine, visit
from bridge.amqp.topology import Topology
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.demo.private_node import LocalNode
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import Raw
from tests.integration.dead_letters import take_all
from tests.integration.operator.dead_letter_fixtures import (
    numbers,
    publish_letters,
    ready,
)


@pytest.fixture
async def dead(raw: Raw, wanted: Topology, names: BrokerNames) -> str:
    """The queue of dead letters, empty."""
    queue = next(queue for queue in wanted.queues if queue.name == names.dead)
    await raw.channel.exchange_declare(names.dead, exchange_type="fanout", durable=True)
    await raw.channel.queue_declare(
        queue.name, durable=True, arguments=dict(queue.arguments)
    )
    await raw.channel.queue_bind(queue.name, names.dead)
    return queue.name


async def look(
    address: BrokerAddress, queue: str, line: ReturnedLine, count: int
) -> list[int]:
    """Look at the first `count` letters."""
    seen: list[Delivery] = []

    def take(one: Delivery) -> bool:
        seen.append(one)
        return len(seen) < count

    async with visit(address, queue, line) as session:
        await session.read(take, at_most=count)
    return numbers(seen)


@pytest.mark.parametrize("depths", [(3, 50, 1), (300, 40, 2), (1200, 10, 1500, 5)])
async def test_looks_of_any_depth_change_neither_order_nor_number(
    broker: LocalNode,
    address: BrokerAddress,
    names: BrokerNames,
    dead: str,
    depths: tuple[int, ...],
) -> None:
    """A short look after a long one would put the head of the queue behind the rest."""
    await publish_letters(broker, names, 2000)
    line = ReturnedLine()

    for count in depths:
        assert await look(address, dead, line, count) == list(range(count))

    assert numbers(await take_all(broker, dead)) == list(range(2000))


async def test_a_bridge_that_was_restarted_finds_out_how_deep_others_looked(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """What it remembers is gone; the letters say that they were given back."""
    await publish_letters(broker, names, 2500)
    await look(address, dead, ReturnedLine(), 2200)

    assert await look(address, dead, ReturnedLine(), 3) == [0, 1, 2]

    assert numbers(await take_all(broker, dead)) == list(range(2500))


async def test_letters_that_come_during_a_look_stand_behind_the_others(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """The queue lives on while an operator reads."""
    await publish_letters(broker, names, 100)
    line = ReturnedLine()
    await look(address, dead, line, 60)
    async with visit(address, dead, line) as session:
        await session.read(lambda _one: True, at_most=80)
        await publish_letters(broker, names, 50, start=100)

    assert await look(address, dead, line, 10) == list(range(10))
    assert numbers(await take_all(broker, dead)) == list(range(150))


async def test_what_was_acked_is_gone_and_the_rest_keeps_its_order(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """A redrive of some: the others must not notice."""
    await publish_letters(broker, names, 300)
    line = ReturnedLine()
    await look(address, dead, line, 200)
    seen: list[Delivery] = []
    async with visit(address, dead, line) as session:
        await session.read(lambda one: not seen.append(one), at_most=90)  # type: ignore[func-returns-value] # it returns None, which is the point
        await session.ack([one.tag for one in seen if int(one.body) % 3 == 0])

    await look(address, dead, line, 5)

    left = [n for n in range(300) if n % 3 or n >= 90]
    assert numbers(await take_all(broker, dead)) == left


LOOKER = """
import asyncio, sys
from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.browser import ReturnedLine, visit

async def main():
    line = ReturnedLine()
    line.grew_to(int(sys.argv[3]))
    async with visit(BrokerAddress((sys.argv[1],)), sys.argv[2], line) as session:
        seen = []
        await session.read(lambda one: seen.append(1) or len(seen) < 20, at_most=20)
        print("looking", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_look_that_is_killed_changes_neither_order_nor_number(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """Kill -9 in the middle: the broker gives back all that was taken, in order."""
    await publish_letters(broker, names, 600)
    line = ReturnedLine()
    await look(address, dead, line, 400)

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOOKER, broker.url, dead, str(line.length),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30 * SLOW_FACTOR):
        assert await process.stdout.readline() == b"looking\n"
    assert await ready(broker, dead) <= 200
    process.kill()
    await process.wait()

    async def is_back() -> bool:
        return await ready(broker, dead) == 600

    await eventually(is_back)
    assert await look(address, dead, line, 30) == list(range(30))
    assert numbers(await take_all(broker, dead)) == list(range(600))


async def test_a_look_that_stops_early_is_cut_and_changes_nothing(
    broker: LocalNode, address: BrokerAddress, names: BrokerNames, dead: str
) -> None:
    """With a long line the broker has handed over far more than anybody wants to read."""
    await publish_letters(broker, names, 7000)
    line = ReturnedLine()
    assert len(await look(address, dead, line, 7000)) == 7000

    assert await look(address, dead, line, 2) == [0, 1]

    assert numbers(await take_all(broker, dead)) == list(range(7000))
