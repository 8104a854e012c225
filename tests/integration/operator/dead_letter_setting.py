"""A bridge whose dead letters are managed over the API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bridge.core.broker_names import BrokerNames
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
from tests.local_node import LocalNode


@dataclass
class DeadLetterSetup:
    """A bridge with its API and its dead-letter queue."""

    running: RunningBridge
    api: ApiAsker
    worker: Worker
    names: BrokerNames
    broker: LocalNode

    async def remaining(self) -> list[int]:
        """Consume the remaining dead letters and return their numbers, in order."""
        return numbers(await take_all(self.broker, self.names.dead))

    async def has_ready(self, count: int) -> bool:
        """Return whether `count` dead letters are ready."""
        return await ready(self.broker, self.names.dead) == count

    async def run_job(self, kind: str, **body: object) -> Any:
        """Start a job and return it after it has ended."""
        answer = await self.api.ask("POST", f"/api/dead/{kind}", body)
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
) -> AsyncIterator[DeadLetterSetup]:
    """Run a bridge with these settings, a producer and an operator."""
    async with (
        running_bridge(settings_for(broker, namespace, **changes)) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        yield DeadLetterSetup(running, api, worker, BrokerNames(namespace), broker)
