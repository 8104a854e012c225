"""Workers learn who is online, on one bridge with each store, and after it was killed."""

import asyncio
from pathlib import Path

import pytest

from bridge.settings.model import Settings
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.events import presence_worker
from tests.integration.programs import program, settings_for_program, token_for
from tests.integration.running import open_windows, running_bridge, settings_for
from tests.local_node import LocalNode
from tests.redis_server import RedisServer


@pytest.fixture
def settings(broker: LocalNode, namespace: str, inbox_url: str) -> Settings:
    """Settings with each store."""
    presence = {"presence": "true", "presence_debounce": "500ms"}
    return settings_for(broker, namespace, inbox=inbox_url, **presence)


async def test_a_worker_learns_who_comes_and_goes(
    broker: LocalNode, namespace: str, settings: Settings
) -> None:
    """The second window of a user, and the first one that is closed, change nothing."""
    async with (
        running_bridge(settings) as running,
        presence_worker(broker, namespace) as worker,
    ):
        url, tokens = running.listening.public_url, [running.token("ann")]
        async with open_windows(url, tokens):
            await eventually(lambda: worker.changes == [("ann", "online")])
            async with open_windows(url, [*tokens, running.token("ben")]):
                await eventually(lambda: ("ben", "online") in worker.changes)
            await eventually(lambda: ("ben", "offline") in worker.changes)
            assert len(worker.changes) == 3
        await eventually(lambda: worker.changes[3:] == [("ann", "offline")])
        async with open_windows(url, tokens):
            await eventually(lambda: worker.changes[4:] == [("ann", "online")])
            assert [body["windows"] for body in worker.bodies] == [1, 1, 0, 0, 1]


async def test_without_the_setting_nothing_reports_presence(
    broker: LocalNode, namespace: str
) -> None:
    """It costs nothing then, either."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        assert running.bridge.components.presence is None


async def test_bridge_warns_that_no_worker_has_bound_a_queue(
    broker: LocalNode, namespace: str
) -> None:
    """RabbitMQ confirms the events and drops them, so nothing else shows it."""
    async with (
        running_bridge(settings_for(broker, namespace, presence="true")) as one,
        open_windows(one.listening.public_url, [one.token("ann")]),
    ):
        warnings = one.bridge.components.readiness.warnings
        await eventually(lambda: "for user.online" in str(warnings()))


async def test_users_who_stay_away_after_a_crash_are_reported(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """The process is killed with their windows open."""
    more = {
        "presence": "true",
        # Ben must have returned when it is over.
        "presence_debounce": f"{8 * SLOW_FACTOR:g}s",
        "inbox": f"sqlite:{tmp_path / 'inbox.sqlite3'}",
    }
    settings = settings_for_program(broker, namespace, **more)
    ann, ben = [token_for(user, **settings) for user in ("ann", "ben")]
    both = [("ann", "online"), ("ben", "online")]
    async with presence_worker(broker, namespace) as worker:
        async with (
            program(broker, namespace, **more) as killed,
            open_windows(killed.public_url, [ann, ben]),
        ):
            await eventually(lambda: sorted(worker.changes) == both)
            killed.process.kill()
            await killed.ended()
        async with (
            program(broker, namespace, **more) as started,
            open_windows(started.public_url, [ben]),
        ):
            await eventually(lambda: len(worker.changes) > 2, within_s=60)
            assert worker.changes[2:] == [("ann", "offline")]


async def test_users_who_left_before_redis_was_emptied_are_reported(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """The debounce of a user who left is in Redis, and is lost with it."""
    async with RedisServer.start(tmp_path) as server:
        settings = settings_for(
            broker,
            namespace,
            inbox=server.url,
            presence="true",
            # Redis must be empty before it is over.
            presence_debounce=f"{2 * SLOW_FACTOR:g}s",
        )
        async with (
            running_bridge(settings) as running,
            presence_worker(broker, namespace) as worker,
        ):
            url = running.listening.public_url
            ann, ben = running.token("ann"), running.token("ben")
            async with open_windows(url, [ann]):
                async with open_windows(url, [ben]):
                    await eventually(lambda: len(worker.changes) == 2)
                await asyncio.to_thread(server.command, "FLUSHALL")
                await eventually(
                    lambda: ("ben", "offline") in worker.changes, within_s=60
                )
                await eventually(lambda: worker.changes.count(("ann", "online")) == 2)
