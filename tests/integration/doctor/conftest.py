"""A node with RabbitMQ's management plugin, and helpers that change it over the API."""

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
import pytest_asyncio
from yarl import URL

from tests.conftest import HASH_PLUGINS, SLOW_FACTOR
from tests.local_node import LocalNode


@dataclass(frozen=True, slots=True)
class ManagedBroker:
    """A node whose management API answers at `url`, with an administrator's login in it."""

    node: LocalNode
    url: URL

    async def ask(self, method: str, path: str, body: object = None) -> object:
        """Call the management API; rabbitmqctl would take a second for each call."""
        login = aiohttp.encode_basic_auth(self.url.user or "", self.url.password or "")
        url = URL(f"{self.url.with_user(None)}api/{path}", encoded=True)
        async with (
            aiohttp.ClientSession(headers={"Authorization": login}) as session,
            session.request(method, url, json=body) as response,
        ):
            assert response.status < 300, await response.text()
            return await response.json() if response.status == 200 else None

    async def set_permissions(self, user: str, *patterns: str) -> None:
        """Set the three patterns of `user`: configure, write and read."""
        names = ("configure", "write", "read")
        body = dict(zip(names, patterns, strict=True))
        await self.ask("PUT", f"permissions/%2F/{user}", body)

    async def add_user(self, user: str, *patterns: str) -> URL:
        """Create a user with password `pw` and these permissions; return its AMQP URL."""
        body = {"password": "pw", "tags": "management"}
        await self.ask("PUT", f"users/{quote(user)}", body)
        await self.set_permissions(user, *patterns)
        return URL(self.node.url).with_user(user).with_password("pw")


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def managed_broker() -> AsyncIterator[ManagedBroker]:
    """One node for all tests of this folder; each test has a `namespace` of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ("management.tcp.ip = 127.0.0.1", f"management.tcp.port = {port}")
    async with LocalNode.start(
        plugins=("rabbitmq_management", *HASH_PLUGINS),
        extra_config=config,
        ready_within_s=90 * SLOW_FACTOR,
    ) as node:
        url = URL(node.url).with_scheme("http").with_port(port).with_path("/")
        yield ManagedBroker(node, url)
