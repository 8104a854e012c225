"""Two real bridges behind each load balancer, and the official client in Node."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.balancers import KINDS, Balancer, open_balancer
from tests.integration.running import RunningBridge, running_bridge, settings_for
from tests.integration.sockets.js_pages import Pages, open_pages
from tests.local_node import LocalNode


@dataclass(frozen=True)
class BalancedBridges:
    """Two bridges behind a load balancer."""

    balancer: Balancer
    bridges: Sequence[RunningBridge]

    @property
    def url(self) -> str:
        """The URL of the load balancer."""
        return self.balancer.url

    def options(self, user: str, *transports: str) -> dict[str, object]:
        """Return the options of the official client."""
        token = self.bridges[0].token(user)
        return {"auth": {"token": token}, "transports": transports}

    def bridges_of(self, user: str) -> list[RunningBridge]:
        """Return the bridge of each window of `user`."""
        return [
            each
            for each in self.bridges
            for _ in each.bridge.components.sockets.rooms.windows_of(user)
        ]

    def bridge_of(self, user: str) -> RunningBridge:
        """Return the bridge of the one window of `user`."""
        [bridge] = self.bridges_of(user)
        return bridge

    def other_than(self, bridge: RunningBridge) -> RunningBridge:
        """Return the other bridge of the two."""
        [other] = [each for each in self.bridges if each is not bridge]
        return other


@asynccontextmanager
async def open_balanced(
    kind: str, broker: LocalNode, namespace: str, **changes: object
) -> AsyncIterator[BalancedBridges]:
    """
    Run two bridges behind a load balancer; `changes` are settings of both.

    Bridges with separate inboxes need a namespace each: in one namespace, the second
    bridge would wait until the first one stops.
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
        yield BalancedBridges(balancer, bridges)


@pytest_asyncio.fixture(params=KINDS)
async def balanced(
    request: pytest.FixtureRequest, broker: LocalNode, namespace: str
) -> AsyncIterator[BalancedBridges]:
    """Two bridges with separate inboxes, behind nginx and behind HAProxy."""
    async with open_balanced(request.param, broker, namespace) as balanced:
        yield balanced


@pytest_asyncio.fixture
async def pages() -> AsyncIterator[Pages]:
    """A Node process with the official client."""
    async with open_pages() as pages:
        yield pages
