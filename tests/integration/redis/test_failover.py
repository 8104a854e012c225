"""A bridge under load follows failovers of three Sentinels, a master and a replica."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge import wiring
from bridge.clock import SteadyClock
from bridge.core.redis_address import RedisAddress
from bridge.inbox.contract import Retention
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.redis.timing import RedisTiming
from tests.conftest import eventually
from tests.integration.running import (
    RunningBridge,
    Worker,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.integration.sockets.js_pages import Pages, open_pages
from tests.local_node import LocalNode
from tests.redis_bridges import bridge_on
from tests.redis_fleet_servers import replicated, watched
from tests.redis_server import RedisServer

USERS = ("ann", "bob")
# The test publishes all the time, and must end before an inbox reaches its limit of 1000
# messages: the last check reads the inboxes from their first message.
TIMING = RedisTiming(discovery_interval_s=0.2, probe_interval_s=0.1, backoff_max_s=0.2)


class FastRedisInbox(RedisInbox):
    """The store as the bridge creates it, with short intervals."""

    def __init__(
        self,
        address: RedisAddress,
        retention: Retention,
        *,
        namespace: str,
        clock: SteadyClock,
    ) -> None:
        super().__init__(
            address, retention, namespace=namespace, clock=clock, timing=TIMING
        )


class Load:
    """Publishes increasing numbers to all users."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.confirmed = 0

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            for user in USERS:
                await self._worker.publish(user, self.confirmed)
            self.confirmed += 1
            await asyncio.sleep(0.01)  # enough load to have messages in flight


@asynccontextmanager
async def loaded(worker: Worker) -> AsyncIterator[Load]:
    """Publish while the block lasts."""
    load = Load(worker)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(load.run(), name="load")
        yield load
        running.cancel()


async def until_more_arrive(pages: Pages, load: Load) -> None:
    """Wait until both pages receive messages that are published from now on."""
    wanted = load.confirmed + 10
    await eventually(
        lambda: all(wanted in pages.data(user) for user in USERS), within_s=30
    )


async def until_role(server: RedisServer, role: str) -> None:
    """Wait until the server has this role; the Sentinels may need several elections."""

    async def has_it() -> bool:
        try:
            info = await asyncio.to_thread(server.command, "INFO", "replication")
        except ConnectionError:
            # A Sentinel that changes the role of a server sends CLIENT KILL TYPE normal
            # with it, which may hit this connection.
            return False
        return f"role:{role}" in info

    await eventually(has_it, within_s=30)


async def until_failed_over(running: RunningBridge, new: RedisServer) -> None:
    """Wait until `new` is the master, and the bridge uses it and waits for a replica."""
    await until_role(new, "master")

    def reasons() -> str:
        return str(running.bridge.unready_reasons())

    await eventually(
        lambda: "0 of 1 replicas have acknowledged" in reasons(), within_s=20
    )


async def test_a_bridge_follows_the_master_and_loses_nothing(
    broker: LocalNode,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    The master is killed; later the new one freezes. Each comes back as a replica.

    With replicas=1 no message is acked that only one server has. Pages learn that
    messages may be missing, and finally have all of them, in order.
    """
    monkeypatch.setattr(wiring, "RedisInbox", FastRedisInbox)
    async with (
        replicated(tmp_path) as (first, (second,)),
        watched(tmp_path, first) as sentinels,
        open_pages() as pages,
        open_worker(broker, namespace) as worker,
    ):
        hosts = ",".join(f"{each.host}:{each.port}" for each in sentinels)
        url = f"redis+sentinel://{hosts}/main?replicas=1"
        # All messages of the load, however long the elections take.
        settings = settings_for(
            broker, namespace, inbox=url, inbox_max_messages=100_000
        )
        async with running_bridge(settings) as running:
            for user in USERS:
                await pages.connected(
                    user,
                    running.listening.public_url,
                    auth={"token": running.token(user)},
                    transports=["websocket"],
                )
            async with loaded(worker) as load:
                await until_more_arrive(pages, load)

                await asyncio.to_thread(first.kill)
                await until_failed_over(running, second)
                await asyncio.to_thread(first.run)  # as a master, with its old data
                await until_more_arrive(pages, load)
                await until_role(first, "slave")

                second.pause()
                await until_failed_over(running, first)
                second.resume()
                await until_more_arrive(pages, load)
            await until_all_is_there(pages, load)
            for user in USERS:
                told = [words[0] for words in pages.all(user, "event", "bridge:sync")]
                assert [each["complete"] for each in told].count(False) >= 2

        wanted = [str(number).encode() for number in range(load.confirmed)]
        async with bridge_on(url, namespace=namespace) as bridge:
            for user in USERS:
                assert (await bridge.texts(user))[: len(wanted)] == wanted


async def until_all_is_there(pages: Pages, load: Load) -> None:
    """Wait until pages have each number, first occurrences in order."""

    def firsts(user: str) -> list[int]:
        return list(dict.fromkeys(pages.data(user)))

    wanted = list(range(load.confirmed))
    await eventually(
        lambda: all(firsts(user)[: len(wanted)] == wanted for user in USERS),
        within_s=30,
    )
