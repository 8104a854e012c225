"""Bridges that share shards are killed: nothing is lost, and the order per user is kept."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.shards.migration import ShardMigration, publish_end_markers
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import PERSISTENT, Properties, render_table
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.events import consume_events
from tests.integration.programs import environment
from tests.integration.running import SECRET, Worker, open_worker
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

USERS = [f"user{number}" for number in range(16)]
LATE = Properties(
    delivery_mode=PERSISTENT,
    headers=render_table({"x-bridge-undelivered-after": "300ms"}),
)


@dataclass
class Fleet:
    """Bridge processes, and the messages that they stored."""

    file: Path
    settings: dict[str, str]
    running: dict[int, Process] = field(default_factory=dict)

    async def start(self, shards: int) -> None:
        """Start another process."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.reporting_program",
            "run",
            env=environment(**self.settings, shards=str(shards))
            | {"TESTS_STORED": str(self.file)},
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        self.running[process.pid] = process

    async def kill(self, pid: int) -> None:
        """Kill a process, like the kernel when memory is short."""
        process = self.running.pop(pid)
        process.kill()
        await process.wait()

    def stored(self) -> list[tuple[int, str, int]]:
        """Return process, user and number of each stored message, in order."""
        # The last line may be incomplete: a write of several pages is not atomic.
        rows = (line.split() for line in self.file.read_text().split("\n")[:-1])
        return [(int(pid), user, int(number)) for pid, user, number in rows]

    def busiest(self, *, since: int = 0) -> int:
        """Return the running process that stored most."""
        counts = Counter(pid for pid, _, _ in self.stored()[since:])
        return max(self.running, key=lambda pid: counts[pid])

    def sharing(self, *, since: int) -> int:
        """Return how many processes stored something."""
        return len({pid for pid, _, _ in self.stored()[since:]})


@pytest.fixture
async def fleet(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> AsyncIterator[Fleet]:
    async with (
        RedisServer.start(tmp_path / "redis", is_durable=False) as redis,
        fleet_on(redis, broker, namespace, tmp_path / "stored") as fleet,
    ):
        yield fleet


@asynccontextmanager
async def fleet_on(
    redis: RedisServer, broker: LocalNode, namespace: str, file: Path
) -> AsyncIterator[Fleet]:
    """Record in `file` what the bridges store; kill the remaining ones at the end."""
    await asyncio.to_thread(file.touch)
    settings = {
        "amqp_url": broker.url,
        "namespace": namespace,
        "port": "0",
        "operator_port": "0",
        "jwt_secret": SECRET,
        "inbox": redis.url,
        "prefetch": "20",
    }
    fleet = Fleet(file, settings)
    try:
        yield fleet
    finally:
        for process in fleet.running.values():
            process.send_signal(signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def publishing(worker: Worker, sent: dict[str, int]) -> AsyncIterator[None]:
    """Publish numbers to all users, with confirms, until the block ends."""
    is_over = asyncio.Event()

    async def to(user: str) -> None:
        while not is_over.is_set():
            await worker.publish(user, sent[user] + 1, properties=LATE)
            sent[user] += 1
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        for user in USERS:
            tasks.create_task(to(user))
        yield
        is_over.set()


def first_of_each(numbers: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


async def test_kills_while_the_number_of_shards_changes_lose_and_reorder_nothing(
    broker: LocalNode, namespace: str, fleet: Fleet
) -> None:
    """
    Stored and unacked messages are repeated; no message overtakes an earlier one.

    No user has a window, so each message is reported as undelivered, also if the bridge that
    stored it is gone. A repeated report has the same id.
    """
    reported: dict[str | None, set[tuple[str, int]]] = defaultdict(set)

    def note(event: AbstractIncomingMessage) -> None:
        body = json.loads(event.body)
        reported[event.message_id].add((body["user"], body["data"]))

    events = await aio_pika.connect(broker.url)
    channel = await events.channel()
    await consume_events(channel, namespace, note, topics="message.undelivered")
    plan = ShardPlan(BrokerNames(namespace), (1.0, 10.0, 60.0))
    connection = await open_connection(
        BrokerAddress((broker.url,)), purpose=Purpose.OPERATE, reader=FrameReader
    )
    migration = ShardMigration(connection, plan)
    sent: dict[str, int] = defaultdict(int)
    await migration.ensure()
    for _ in range(3):
        await fleet.start(1)
    async with open_worker(broker, namespace) as worker, publishing(worker, sent):
        await eventually(lambda: len(fleet.stored()) > 100, within_s=60)
        layout = await migration.change(4)
        await fleet.kill(fleet.busiest())
        await fleet.start(4)
        async with asyncio.timeout(60 * SLOW_FACTOR):
            while await migration.records.previous_queues(layout):
                await asyncio.sleep(plan.marker_interval_s)
                await publish_end_markers(connection, plan, layout)
        moved = len(fleet.stored())
        await eventually(lambda: fleet.sharing(since=moved) >= 2, within_s=30)
        await fleet.kill(fleet.busiest(since=moved))
        killed = len(fleet.stored())
        await eventually(lambda: len(fleet.stored()) > killed + 200, within_s=30)
    await connection.disconnect()

    def is_all_there() -> bool:
        return len({row[1:] for row in fleet.stored()}) == sum(sent.values())

    def is_all_reported() -> bool:
        return len(set().union(*reported.values())) == sum(sent.values())

    await eventually(is_all_there, within_s=30)
    # Bridges wait up to 15 s for one that was killed: it may have delivered in time.
    await eventually(is_all_reported, within_s=40)
    await events.close()
    assert max(map(len, reported.values())) == 1
    of: dict[str, list[int]] = defaultdict(list)
    for _, user, number in fleet.stored():
        of[user].append(number)
    for user in USERS:
        assert first_of_each(of[user]) == list(range(1, sent[user] + 1)), user
