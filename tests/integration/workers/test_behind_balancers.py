"""Two machines with two workers each, behind the load balancers of compose/."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import orjson
from yarl import URL

from tests.balancers import KINDS, Balancer, open_balancer
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.running import open_worker
from tests.integration.workers.conftest import (
    LIMIT_S,
    Pages,
    Program,
    pages,
    program,
    token_for,
)
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

# So many that all four workers have some, except in one of several thousand runs.
WINDOWS = 6
TRANSPORTS = ("default", "polling")
MESSAGES = 60


@dataclass(frozen=True)
class Site:
    """Two machines, and both balancers in front of them."""

    machines: list[Program]
    balancers: list[Balancer]


@asynccontextmanager
async def open_site(
    broker: LocalNode, namespace: str, redis: RedisServer
) -> AsyncIterator[Site]:
    """Start everything; the machines are ready when the block is entered."""
    async with AsyncExitStack() as stack:
        machines = [
            await stack.enter_async_context(
                program(
                    broker,
                    namespace,
                    redis,
                    name=f"bridge-{number}",
                    trusted_proxies="127.0.0.1",
                )
            )
            for number in (1, 2)
        ]
        ports = [int(each.public_url.rpartition(":")[2]) for each in machines]
        balancers = [
            await stack.enter_async_context(open_balancer(kind, bridge_ports=ports))
            for kind in KINDS
        ]
        yield Site(machines, balancers)


def homes(opened: list[Pages]) -> set[tuple[str, str]]:
    """Return the machines and workers that own the windows' sessions."""
    ids = [str(each["session"]) for its in opened for each in its.of("sync")]
    return {(sid.split(".")[0], sid.rpartition(".")[2]) for sid in ids}


async def test_windows_stay_with_their_workers_and_move_when_a_machine_drains(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """
    A connection of a balancer carries the polls of many windows, of both workers.

    So it is handed over between workers again and again. Clients must not notice it, neither
    in normal operation nor while one machine drains and reports that it is not ready. The
    client's address is handed over too.
    """
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(
            open_site(broker, namespace, redis_server)
        )
        worker = await stack.enter_async_context(open_worker(broker, namespace))
        opened = [
            await stack.enter_async_context(
                pages(balancer.url, "ann", count=WINDOWS, transports=transports)
            )
            for balancer in site.balancers
            for transports in TRANSPORTS
        ]
        for its in opened[:: len(TRANSPORTS)]:
            await eventually(lambda its=its: len(its.of("upgrade")) == WINDOWS)  # type: ignore[misc] # mypy does not see through the default
        assert {machine for machine, _ in homes(opened)} == {"bridge-1", "bridge-2"}
        assert len(homes(opened)) > 2

        for balancer in site.balancers:
            await check_addresses(balancer, site.machines[1], f"of {balancer.kind}")

        expected: list[object] = list(range(MESSAGES))
        for number in range(MESSAGES):
            await worker.publish("ann", number)
            if number == MESSAGES // 2:
                for its in opened:
                    await has_all(its, expected[: number + 1])
                    assert its.of("error") == its.of("disconnect") == []
                leaving = site.machines[0].process
                leaving.send_signal(signal.SIGTERM)
        for its in opened:
            await has_all(its, expected)
        async with asyncio.timeout(LIMIT_S):
            assert await leaving.wait() == 0

        # Some windows had everything before the drain, and still reconnect.

        async def all_have_reconnected() -> bool:
            _, body = await site.machines[1].get("/api/users/ann")
            return len(orjson.loads(body)["windows"]) == len(opened) * WINDOWS

        await eventually(all_have_reconnected, within_s=30)
        for its in opened:
            await has_all(its, expected)
            assert its.of("error") == []
            assert all(sync["complete"] for sync in its.of("sync"))
            reconnects = its.of("connect")[WINDOWS:]
            assert all(connect["recovered"] for connect in reconnects)
            assert all(str(c["session"]).startswith("bridge-2.") for c in reconnects)


async def has_all(its: Pages, expected: list[object]) -> None:
    """Wait until each window has received exactly `expected`, in order."""
    await eventually(
        lambda: all(its.data(window) == expected for window in range(WINDOWS)),
        within_s=30,
    )


async def check_addresses(balancer: Balancer, machine: Program, user: str) -> None:
    """Check that the client's address survives handovers, and a forged one is ignored."""
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    forged = {"X-Forwarded-For": "203.0.113.9"}
    async with aiohttp.ClientSession(connector=connector, headers=forged) as session:
        for _ in range(8):  # some of them are handed over to another worker
            await enter(session, URL(f"{balancer.url}/socket.io/"), user)
        _, body = await machine.get(f"/api/users/{user}")
    windows = orjson.loads(body)["windows"]
    assert [window["address"] for window in windows] == ["127.0.0.2"] * 8
    assert {window["bridge"] for window in windows} == {"bridge-1", "bridge-2"}


async def enter(session: aiohttp.ClientSession, target: URL, user: str) -> None:
    """Connect as a client that polls, and check that it was admitted."""
    target = target.with_query(EIO="4", transport="polling")
    async with asyncio.timeout(30 * SLOW_FACTOR), session.get(target) as answer:
        sid = orjson.loads((await answer.read())[1:])["sid"]
    target = target.update_query(sid=sid)
    packet = b"40" + orjson.dumps({"token": token_for(user)})
    async with asyncio.timeout(30 * SLOW_FACTOR):
        async with session.post(target, data=packet) as answer:
            assert answer.status == 200, await answer.text()
        async with session.get(target) as answer:
            assert (await answer.text()).startswith("40"), answer
