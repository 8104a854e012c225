"""Logins of the broker and of the store that change while the bridge runs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from bridge.core.properties import PERSISTENT, Properties
from tests.conftest import eventually
from tests.integration.running import (
    Worker,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

RIGHTS = ("~*", "&*", "+@all")


@pytest.fixture
async def worker(broker: LocalNode, namespace: str) -> AsyncIterator[Worker]:
    """Connect a worker with a login of its own."""
    async with open_worker(broker, namespace) as worker:
        yield worker


@pytest.fixture
async def user(broker: LocalNode, namespace: str) -> AsyncIterator[str]:
    """Create a user of the broker with the password `old`."""
    await broker.add_user(namespace, "old", ".*", ".*", ".*")
    yield namespace
    await broker.delete_user(namespace)


async def publish(worker: Worker, count: int, *, halfway: asyncio.Event) -> None:
    """Publish numbers to `ann`, and set `halfway` in the middle of them."""
    for number in range(count):
        if number == count // 2:
            halfway.set()
        # With an id, a message that is redelivered is not stored twice.
        properties = Properties(
            message_id=str(number).encode(), delivery_mode=PERSISTENT
        )
        await worker.publish("ann", number, properties=properties)


async def test_a_new_login_of_the_broker_is_used_for_new_connections(
    broker: LocalNode, namespace: str, worker: Worker, user: str
) -> None:
    """The old password is revoked without a restart, and no message is lost."""

    def url(password: str) -> str:
        return f"amqp://{user}:{password}@{broker.host}:{broker.port}/"

    settings = settings_for(broker, namespace, amqp_url=url("old"))
    async with (
        running_bridge(settings) as running,
        open_windows(running.listening.public_url, [running.token("ann")]) as (ann,),
        asyncio.TaskGroup() as tasks,
    ):
        halfway = asyncio.Event()
        tasks.create_task(publish(worker, 1000, halfway=halfway), name="publish")

        await halfway.wait()
        await broker.ctl("change_password", user, "new")
        with structlog.testing.capture_logs() as logs:
            await running.bridge.reload(
                settings_for(broker, namespace, amqp_url=url("new"))
            )
        await broker.ctl("close_all_user_connections", user, "a test")

        def have_both_connections_been_lost() -> bool:
            return all(
                running.sample("bridge_broker_reconnects_total", purpose=purpose)
                for purpose in ("consume", "publish")
            )

        await eventually(have_both_connections_been_lost)
        await eventually(lambda: not running.bridge.unready_reasons(), within_s=30)
        await eventually(lambda: len(ann.data()) >= 1000, within_s=30)

    assert logs[-1]["changed"] == ["amqp_url"]
    assert logs[-1]["needs_restart"] == []
    assert "new" not in str(logs)
    assert ann.data() == list(range(1000))


@pytest.mark.parametrize(
    "change",
    ["amqp://guest:guest@127.0.0.1:1/", "amqp://guest:guest@127.0.0.1/other"],
    ids=["another-port", "another-vhost"],
)
async def test_another_broker_needs_a_restart_and_is_named(
    broker: LocalNode, namespace: str, change: str
) -> None:
    """Its queues have other messages: a bridge that uses both would lose track of them."""
    settings = settings_for(broker, namespace)
    async with running_bridge(settings) as running:
        with structlog.testing.capture_logs() as logs:
            await running.bridge.reload(
                settings_for(broker, namespace, amqp_url=change, inbox="sqlite:other")
            )

        assert logs[-1]["changed"] == []
        assert logs[-1]["needs_restart"] == ["amqp_url", "inbox"]
        assert logs[-1]["log_level"] == "warning"
        assert running.settings.amqp_url == settings.amqp_url


async def test_a_new_login_of_the_store_is_used_for_new_connections(
    broker: LocalNode, namespace: str, worker: Worker, tmp_path: Path
) -> None:
    """The store is shared, so its old user is deleted for all bridges at once."""
    async with RedisServer.start(tmp_path / "redis") as server:

        def acl(*words: str) -> None:
            assert server.command("ACL", *words) in {"+OK", ":1"}

        def url(user: str) -> str:
            return f"redis://{user}:secret-{user}@{server.host}:{server.port}/"

        acl("SETUSER", "first", "on", ">secret-first", *RIGHTS)
        settings = settings_for(broker, namespace, inbox=url("first"))
        async with (
            running_bridge(settings) as running,
            open_windows(running.listening.public_url, [running.token("ann")]) as (
                ann,
            ),
            asyncio.TaskGroup() as tasks,
        ):
            halfway = asyncio.Event()
            tasks.create_task(publish(worker, 1000, halfway=halfway), name="publish")

            await halfway.wait()
            acl("SETUSER", "second", "on", ">secret-second", *RIGHTS)
            await running.bridge.reload(
                settings_for(broker, namespace, inbox=url("second"))
            )
            acl("DELUSER", "first")  # this closes its connections

            def are_all_of_the_second_user() -> bool:
                lines = [
                    line
                    for line in server.command("CLIENT", "LIST").splitlines()
                    if "name=bridge " in line
                ]
                return len(lines) == 2 and all("user=second" in line for line in lines)

            await eventually(are_all_of_the_second_user, within_s=30)
            await eventually(lambda: len(ann.data()) >= 1000, within_s=30)
            await eventually(lambda: not running.bridge.unready_reasons())

        assert ann.data() == list(range(1000))
