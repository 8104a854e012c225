"""Two bridges with one Redis behind each load balancer: one drains under load."""

import asyncio
from pathlib import Path

import pytest

from tests.balancers import KINDS
from tests.integration.balancers.conftest import open_balanced
from tests.integration.running import open_worker
from tests.integration.sockets.js_pages import Pages, open_pages
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

MESSAGES = 30


@pytest.mark.parametrize("kind", KINDS)
async def test_no_message_is_lost_while_a_bridge_drains(
    kind: str, broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """A rolling restart, seen by polling and WebSocket clients: in order, once."""
    async with (
        RedisServer.start(tmp_path / "redis", is_durable=False) as redis,
        open_balanced(kind, broker, namespace, inbox=redis.url) as balanced,
        open_worker(broker, namespace) as worker,
        open_pages() as pages,
    ):
        users = [
            f"{transport} {number}"
            for transport in ("polling", "websocket")
            for number in range(4)
        ]
        for user in users:
            transport = user.split()[0]
            await pages.connected(
                user, balanced.url, **balanced.options(user, transport)
            )
        leaving = balanced.bridge_of("polling 0")
        other = balanced.other_than(leaving)
        moved = [user for user in users if balanced.bridge_of(user) is leaving]

        for number in range(MESSAGES):
            async with asyncio.TaskGroup() as tasks:
                for user in users:
                    tasks.create_task(worker.publish(user, number))
            if number == MESSAGES // 3:
                leaving.stop.set()

        for user in users:
            await pages.until(user, "event", "message", count=MESSAGES)
        for user in moved:  # some had all before they were told to go
            await pages.until(user, "connect", count=2)
        assert_nothing_was_missed(pages, users, moved)
        assert all(balanced.bridge_of(user) is other for user in users)


def assert_nothing_was_missed(pages: Pages, users: list[str], moved: list[str]) -> None:
    """Check that each window has each message once and in order, and recovered if it moved."""
    for user in users:
        assert pages.data(user) == list(range(MESSAGES)), user
        connects = [report[0]["recovered"] for report in pages.all(user, "connect")]
        assert connects == ([False, True] if user in moved else [False]), user
