"""Three bridges with one Redis under load: a revocation holds on all of them."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from bridge import wiring
from tests.conftest import eventually
from tests.integration.control import back_end, closed, in_one_hour, refusal
from tests.integration.operator.api_client import asking
from tests.integration.redis.test_failover import FastRedisInbox, until_role
from tests.integration.running import (
    RawWindow,
    RunningBridge,
    Worker,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode
from tests.redis_fleet_servers import replicated, watched
from tests.redis_server import RedisServer

WINDOWS = 20


@asynccontextmanager
async def fleet(
    broker: LocalNode, namespace: str, inbox: str
) -> AsyncIterator[Sequence[RunningBridge]]:
    """Run three bridges."""
    async with AsyncExitStack() as stack:
        settings = settings_for(broker, namespace, inbox=inbox)
        yield [
            await stack.enter_async_context(running_bridge(settings)) for _ in range(3)
        ]


@asynccontextmanager
async def load(worker: Worker, users: Sequence[str]) -> AsyncIterator[list[int]]:
    """Publish numbers to `users` while the block lasts; yields how many so far."""
    count = [0]

    async def publish() -> None:
        while True:
            for user in users:
                await worker.publish(user, count[0])
            count[0] += 1

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(publish(), name="load")
        yield count
        running.cancel()


async def keep_connecting(url: str, token: str) -> None:
    """Connect and disconnect again, until the token is refused."""
    codes = set()
    while "token_revoked" not in codes:
        async with open_windows(
            url, [token], until=lambda window: window.is_synced or is_refused(window)
        ) as (window,):
            if window.refusal is not None:
                codes.add(window.refusal["data"]["code"])  # type: ignore[index] # as sent


def is_refused(window: RawWindow) -> bool:
    """Return whether a window was refused, or closed since it was admitted."""
    return window.refusal is not None or window.websocket.closed


async def all_refuse(bridges: Sequence[RunningBridge], token: str) -> None:
    """Wait until each bridge refuses a token because it is revoked."""
    for running in bridges:

        async def refuses(running: RunningBridge = running) -> bool:
            code = await refusal(running, token)
            assert code in {"token_revoked", "not_available"}
            return code == "token_revoked"

        await eventually(refuses, within_s=20)


async def test_a_revocation_holds_on_all_bridges_under_load_and_after_a_restart(
    broker: LocalNode,
    namespace: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While pages connect: none of the user's windows is left or receives anything more."""
    async with (
        RedisServer.start(tmp_path / "redis") as redis,
        fleet(broker, namespace, redis.url) as bridges,
        back_end(broker, namespace) as workers,
        open_worker(broker, namespace) as worker,
        AsyncExitStack() as stack,
    ):
        urls = [running.listening.public_url for running in bridges]
        old = bridges[0].token("ann")
        windows = [
            window
            for url in urls
            for window in await stack.enter_async_context(
                open_windows(url, [old] * WINDOWS)
            )
        ]
        others = await stack.enter_async_context(
            open_windows(urls[0], [bridges[0].token("bob")])
        )
        async with load(worker, ("ann", "bob")) as count:
            await eventually(lambda: all(window.data() for window in windows))
            async with asyncio.TaskGroup() as tasks:
                for url in urls:
                    tasks.create_task(keep_connecting(url, old), name="connect")
                until = {"user": "ann", "until": in_one_hour()}
                started_s = monotonic()
                await workers.send("revoke", until)
                await eventually(
                    lambda: all(w.websocket.closed for w in windows), within_s=30
                )
                took_s = monotonic() - started_s
            before = count[0]
            await eventually(lambda: before + 10 in others[0].data(), within_s=30)

            for running in bridges:
                assert not running.bridge.components.sockets.rooms.windows_of("ann")
            for window in windows:
                assert window.events[-1][0] == "bridge:closing"
                assert (await closed(window))["code"] == "revoked"
            await all_refuse(bridges, old)

            await asyncio.to_thread(redis.restart)
            await all_refuse(bridges, old)
        async with running_bridge(bridges[0].settings) as fresh:
            await all_refuse([fresh], old)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(windows)} windows closed {took_s * 1000:.0f} ms after the publish\n"
        )


async def test_a_revocation_survives_a_failover(
    broker: LocalNode,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With replicas=1 it is acknowledged by a replica before its command is done."""
    monkeypatch.setattr(wiring, "RedisInbox", FastRedisInbox)
    async with (
        replicated(tmp_path) as (first, (second,)),
        watched(tmp_path, first) as sentinels,
        back_end(broker, namespace) as workers,
    ):
        hosts = ",".join(f"{each.host}:{each.port}" for each in sentinels)
        url = f"redis+sentinel://{hosts}/main?replicas=1"
        async with fleet(broker, namespace, url) as bridges:
            token = bridges[0].token("ann")
            await workers.send("revoke", {"user": "ann", "until": in_one_hour()})

            async def is_done() -> bool:
                return await refusal(bridges[0], token) == "token_revoked"

            await eventually(is_done)
            await asyncio.to_thread(first.kill)
            await until_role(second, "master")
            await all_refuse(bridges, token)


async def test_a_bridge_writes_again_what_the_store_has_lost(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """A failover without replicas=1 may lose the last writes, as this empty server does."""
    async with (
        RedisServer.start(tmp_path / "redis") as redis,
        fleet(broker, namespace, redis.url) as bridges,
        asking(bridges[0]) as api,
    ):
        token = bridges[0].token("ann")
        body = {"until": in_one_hour()}
        answer = await api.ask("POST", "/api/users/ann/revoke", body)
        assert answer.status == 200
        await all_refuse(bridges, token)

        await asyncio.to_thread(redis.restart, is_empty=True)
        await all_refuse(bridges, token)
        async with running_bridge(bridges[0].settings) as fresh:
            await all_refuse([fresh], token)
