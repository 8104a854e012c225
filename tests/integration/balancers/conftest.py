"""Two real bridges behind each load balancer, and the official client in Node."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio

from bridge.demo.private_node import LocalNode
from tests.balancers import KINDS, Balancer, open_balancer
from tests.integration.running import RunningBridge, running_bridge, settings_for
from tests.integration.sockets.js_pages import Pages, open_pages


@dataclass(frozen=True)
class House:
    """Bridges, and the load balancer before them."""

    balancer: Balancer
    bridges: Sequence[RunningBridge]

    @property
    def url(self) -> str:
        """Where pages come in."""
        return self.balancer.url

    def options(self, user: str, *transports: str) -> dict[str, object]:
        """Return what the official client is given."""
        token = self.bridges[0].token(user)
        return {"auth": {"token": token}, "transports": transports}

    def homes_of(self, user: str) -> list[RunningBridge]:
        """Return the bridge of each window of `user`."""
        return [
            each
            for each in self.bridges
            for _ in each.bridge.components.sockets.rooms.windows_of(user)
        ]

    def home_of(self, user: str) -> RunningBridge:
        """Return the bridge of the one window of `user`."""
        [home] = self.homes_of(user)
        return home

    def other_than(self, bridge: RunningBridge) -> RunningBridge:
        """Return the other one of two."""
        [other] = [each for each in self.bridges if each is not bridge]
        return other


@asynccontextmanager
async def open_house(
    kind: str, broker: LocalNode, namespace: str, **changes: object
) -> AsyncIterator[House]:
    """
    Run two bridges behind a load balancer; `changes` are settings of both.

    With inboxes of their own they need a namespace each: one would wait for the other.
    """
    is_shared = str(changes.get("inbox", "")).startswith("redis:")
    async with AsyncExitStack() as stack:
        bridges = []
        for number in (1, 2):
            settings = settings_for(
                broker,
                namespace if is_shared else f"{namespace}-{number}",
                name=f"bridge-{number}",
                trusted_proxies="127.0.0.1",
                **changes,
            )
            bridges.append(await stack.enter_async_context(running_bridge(settings)))
        ports = [int(each.listening.public_url.rpartition(":")[2]) for each in bridges]
        balancer = await stack.enter_async_context(
            open_balancer(kind, bridge_ports=ports)
        )
        yield House(balancer, bridges)


@pytest_asyncio.fixture(params=KINDS)
async def house(
    request: pytest.FixtureRequest, broker: LocalNode, namespace: str
) -> AsyncIterator[House]:
    """Two bridges behind nginx, then behind HAProxy, each with an inbox of its own."""
    async with open_house(request.param, broker, namespace) as house:
        yield house


@pytest_asyncio.fixture
async def pages() -> AsyncIterator[Pages]:
    """One Node process with the official client."""
    async with open_pages() as pages:
        yield pages
