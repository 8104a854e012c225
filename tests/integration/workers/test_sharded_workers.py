"""Workers and shards together: who takes what, and what becomes of it when one is killed."""

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import orjson
import pytest

from bridge.demo.private_node import LocalNode
from tests.conftest import eventually
from tests.integration.running import Worker, open_worker
from tests.integration.workers.conftest import Pages, Program, pages, program
from tests.redis_server import RedisServer

# Enough that none of four shards stays empty; the first two have windows.
USERS = [f"user{number}" for number in range(16)]
WINDOWS = 6
ACTIVE = "bridge_shards_active"


@asynccontextmanager
async def publishing(worker: Worker) -> AsyncIterator[dict[str, int]]:
    """Publish 1, 2, 3 … to each user, each confirmed; tells how many until the block is left."""
    is_over = asyncio.Event()
    sent: dict[str, int] = defaultdict(int)

    async def to(user: str) -> None:
        while not is_over.is_set():
            await worker.publish(user, sent[user] + 1)
            sent[user] += 1
            # Fewer in the end than an inbox keeps.
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as tasks:
        for user in USERS:
            tasks.create_task(to(user), name=user)
        yield sent
        is_over.set()


async def spread(running: Program) -> list[int]:
    """Return on how many shards each worker is active, least first."""
    return sorted(map(int, (await running.of_each_worker(ACTIVE)).values()))


async def killed(running: Program, index: int) -> None:
    """Kill a worker, and wait until there is another in its place."""
    (pid,) = [pid for pid, at in running.places().items() if at.index == index]
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        return any(
            at.index == index and other != pid for other, at in running.places().items()
        )

    await eventually(is_back, within_s=30)


async def inbox_of(running: Program, user: str) -> list[int]:
    """Return what is kept for a user, oldest first, each once."""
    numbers: list[int] = []
    cursor = ""
    while True:
        path = f"/api/users/{quote(user)}/inbox?data=true&limit=200{cursor}"
        status, body = await running.get(path)
        assert status == 200, body
        page = orjson.loads(body)
        numbers += [int(item["data"]) for item in page["items"]]
        if page["next"] is None:
            # What was stored and not acked is stored again behind it.
            return list(dict.fromkeys(reversed(numbers)))
        cursor = f"&cursor={page['next']}"


async def check(running: Program, sent: dict[str, int], opened: list[Pages]) -> None:
    """Nothing is lost, and all is in order: in every inbox and in every window."""
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
                # A page written before a kill may come once more.
                return list(dict.fromkeys(its.data(window))) == expected

            await eventually(has_all, within_s=30)
        assert all(sync["complete"] for sync in its.of("sync"))


@pytest.mark.parametrize(
    ("workers", "shards", "shares"),
    [(2, 4, [2, 2]), (3, 2, [0, 1, 1])],
    ids=["more shards", "more workers"],
)
async def test_shards_spread_over_workers_and_over_those_that_come_back(
    broker: LocalNode,
    namespace: str,
    redis_server: RedisServer,
    workers: int,
    shards: int,
    shares: list[int],
) -> None:
    """
    Under load a worker that has shards is killed; with three, the one that has none helps out.

    Its shards go to others with what was in flight, and the one that comes in its place
    gets a share.
    """
    async with (
        program(
            broker,
            namespace,
            redis_server,
            workers=workers,
            shards=str(shards),
            prefetch="40",
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
