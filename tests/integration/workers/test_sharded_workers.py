"""Workers with shards: the assignment, and its recovery when a worker is killed."""

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import orjson
import pytest

from tests.conftest import eventually
from tests.integration.running import Worker, open_worker
from tests.integration.workers.conftest import Pages, Program, pages, program
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

# Enough users that each of four shards has some. The first two users have windows.
USERS = [f"user{number}" for number in range(16)]
WINDOWS = 6
ACTIVE = "bridge_shards_active"


@asynccontextmanager
async def publishing(worker: Worker) -> AsyncIterator[dict[str, int]]:
    """Publish 1, 2, 3 … to each user with confirms; yields how many, until the block ends."""
    is_over = asyncio.Event()
    sent: dict[str, int] = defaultdict(int)

    async def to(user: str) -> None:
        while not is_over.is_set():
            await worker.publish(user, sent[user] + 1)
            sent[user] += 1
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as tasks:
        for user in USERS:
            tasks.create_task(to(user), name=user)
        yield sent
        is_over.set()


async def spread(running: Program) -> list[int]:
    """Return on how many shards each worker is active, in ascending order."""
    return sorted(map(int, (await running.of_each_worker(ACTIVE)).values()))


async def killed(running: Program, index: int) -> None:
    """Kill a worker, and wait until its slot has another process."""
    (pid,) = [pid for pid, at in running.slots().items() if at.index == index]
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        return any(
            at.index == index and other != pid for other, at in running.slots().items()
        )

    await eventually(is_back, within_s=30)


async def inbox_of(running: Program, user: str) -> list[int]:
    """Return the messages in the inbox of a user, oldest first, without duplicates."""
    numbers: list[int] = []
    cursor = ""
    while True:
        path = f"/api/users/{quote(user)}/inbox?data=true&limit=200{cursor}"
        status, body = await running.get(path)
        assert status == 200, body
        page = orjson.loads(body)
        numbers += [int(item["data"]) for item in page["items"]]
        if page["next"] is None:
            # Messages that were stored and not acked are stored again later.
            return list(dict.fromkeys(reversed(numbers)))
        cursor = f"&cursor={page['next']}"


async def check(running: Program, sent: dict[str, int], opened: list[Pages]) -> None:
    """Check that every inbox and every window has all messages in order."""
    for user in USERS:
        expected = list(range(1, sent[user] + 1))

        async def is_stored(user: str = user, expected: list[int] = expected) -> bool:
            return await inbox_of(running, user) == expected

        await eventually(is_stored, within_s=30)
    for user, its in zip(USERS, opened, strict=False):
        expected = list(range(1, sent[user] + 1))
        for window in range(WINDOWS):

            def has_all(
                its: Pages = its, window: int = window, expected: list[int] = expected
            ) -> bool:
                # The last messages before a kill may be written twice.
                return list(dict.fromkeys(its.data(window))) == expected

            await eventually(has_all, within_s=30)
        assert all(sync["complete"] for sync in its.of("sync"))


@pytest.mark.parametrize(
    ("workers", "shards", "shares"),
    [(2, 4, [2, 2]), (3, 2, [0, 1, 1])],
    ids=["more shards", "more workers"],
)
async def test_shards_are_assigned_evenly_also_after_a_restart(
    broker: LocalNode,
    namespace: str,
    redis_server: RedisServer,
    workers: int,
    shards: int,
    shares: list[int],
) -> None:
    """
    Kill a worker that has shards, under load; of three workers one has no shard before.

    The shards move to other workers with the messages in flight, and the restarted worker
    gets its share.
    """
    async with (
        program(
            broker,
            namespace,
            redis_server,
            workers=workers,
            shards=str(shards),
            prefetch="40",
            inbox_max_messages="10000",  # all of them, also on a slow machine
        ) as running,
        open_worker(broker, namespace) as worker,
        pages(running.public_url, USERS[0], count=WINDOWS) as first,
        pages(
            running.public_url, USERS[1], count=WINDOWS, transports="websocket"
        ) as second,
    ):
        async with publishing(worker) as sent:

            async def are_spread() -> bool:
                return await spread(running) == shares

            await eventually(are_spread, within_s=30)
            active = await running.of_each_worker(ACTIVE)
            await killed(running, max(active, key=active.__getitem__))
            await eventually(are_spread, within_s=30)
        await check(running, sent, [first, second])
        assert await running.sample("bridge_worker_restarts_total") == 1
