"""Two bridges share a queue and a Redis: windows may connect to either bridge."""

import asyncio
from pathlib import Path

from tests.conftest import eventually
from tests.integration.running import (
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
    two_bridges,
)
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

COUNT = 500


async def test_windows_on_two_bridges_get_every_message_in_order(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """Only one bridge consumes the queue; the other gets its messages from Redis."""
    async with (
        two_bridges(broker, namespace, tmp_path) as (one, other),
        open_worker(broker, namespace) as worker,
        open_windows(one.listening.public_url, [one.token("ann")]) as near,
        open_windows(other.listening.public_url, [one.token("ann")]) as far,
    ):
        async with asyncio.TaskGroup() as tasks:
            for number in range(COUNT):
                tasks.create_task(worker.publish("ann", number))
                await worker.publish("other user", number)
        windows = [*near, *far]
        await eventually(lambda: all(len(window.data()) == COUNT for window in windows))

        numbers = list(range(COUNT))
        assert [sorted(map(int, map(str, w.data()))) for w in windows] == [
            numbers,
            numbers,
        ]
        assert near[0].data() == far[0].data()
        positions = [[e[2] for e in w.events if e[0] == "message"] for w in windows]
        assert positions[0] == positions[1]
        # Messages for users without windows reach no bridge through the feed.
        counts = [each.sample("bridge_emitted_total") for each in (one, other)]
        assert counts == [COUNT, COUNT]


async def test_both_bridges_close_their_windows_after_redis_lost_its_data(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """Clients reconnect, and learn that messages may be missing."""
    async with RedisServer.start(tmp_path) as server:
        settings = settings_for(broker, namespace, inbox=server.url)
        async with (
            running_bridge(settings) as one,
            running_bridge(settings) as other,
            open_windows(one.listening.public_url, [one.token("ann")]) as near,
            open_windows(other.listening.public_url, [one.token("bob")]) as far,
        ):
            await asyncio.to_thread(server.kill)
            await eventually(one.bridge.unready_reasons)
            await eventually(other.bridge.unready_reasons)
            server.delete_files()
            await asyncio.to_thread(server.run)

            def are_closed() -> bool:
                return all(w.data("bridge:closing") for w in (*near, *far))

            def are_ready() -> bool:
                return not any(r.bridge.unready_reasons() for r in (one, other))

            await eventually(are_closed)
            await eventually(are_ready)
