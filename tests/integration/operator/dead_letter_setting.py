"""A bridge whose dead letters are worked on over the API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bridge.core.broker_names import BrokerNames
from bridge.demo.private_node import LocalNode
from tests.conftest import eventually
from tests.integration.dead_letters import take_all
from tests.integration.operator.api_client import ApiAsker, asking
from tests.integration.operator.dead_letter_fixtures import numbers, ready
from tests.integration.running import (
    RunningBridge,
    Worker,
    open_worker,
    running_bridge,
    settings_for,
)


@dataclass
class Setting:
    """A bridge, its API, its dead letters."""

    running: RunningBridge
    api: ApiAsker
    worker: Worker
    names: BrokerNames
    broker: LocalNode

    async def order(self) -> list[int]:
        """Take all letters that are left, in their order."""
        return numbers(await take_all(self.broker, self.names.dead))

    async def has_ready(self, count: int) -> bool:
        """Ask whether so many letters are in the queue."""
        return await ready(self.broker, self.names.dead) == count

    async def start(self, what: str, **body: object) -> Any:
        """Start a job and return it when it has ended."""
        answer = await self.api.ask("POST", f"/api/dead/{what}", body)
        assert answer.status == 202, answer
        job = answer.body["job"]

        async def has_ended() -> bool:
            nonlocal job
            job = await self.api.get(f"/api/jobs/{job['id']}")
            return bool(job["state"] != "running")

        await eventually(has_ended, within_s=60)
        return job


@asynccontextmanager
async def setting(
    broker: LocalNode, namespace: str, **changes: object
) -> AsyncIterator[Setting]:
    """Run a bridge with these settings, and a worker and an operator of it."""
    async with (
        running_bridge(settings_for(broker, namespace, **changes)) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        yield Setting(running, api, worker, BrokerNames(namespace), broker)
