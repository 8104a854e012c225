"""Metrics of queues and of the inbox store; most are gauges, measured at intervals."""

import asyncio
from typing import Final

from bridge.amqp.queues import QueueInspector
from bridge.errors import BrokerUnavailableError, StoreUnavailableError
from bridge.inbox.contract import Inbox
from bridge.metrics import Metrics

_FIRST_AFTER_S: Final = 5.0
_INTERVAL_S: Final = 30.0


class GaugeSampler:
    """Sets the gauges of queues and of the inbox store."""

    def __init__(
        self, metrics: Metrics, *, queues: QueueInspector, inbox: Inbox, store: str
    ) -> None:
        """Take what is measured; `store` is the label of the inbox gauges."""
        self._metrics = metrics
        self._queues = queues
        self._inbox = inbox
        self._store = store
        metrics.trimmed.set_function(lambda: inbox.trimmed)

    async def run(self) -> None:
        """Measure at intervals until cancelled."""
        await asyncio.sleep(_FIRST_AFTER_S)  # do not compete with the start
        while True:
            await self.measure()
            await asyncio.sleep(_INTERVAL_S)

    async def measure(self) -> None:
        """Measure once; a queue or a store that does not answer has no gauge."""
        await self._measure_queues()
        await self._measure_inbox()

    async def _measure_queues(self) -> None:
        messages, consumers = (
            self._metrics.queue_messages,
            self._metrics.queue_consumers,
        )
        try:
            queues = await self._queues.inspect_without_ages()
        except BrokerUnavailableError:
            queues = []
        # An old number would look like a current one, and queues disappear when the
        # number of shards changes.
        messages.clear()
        consumers.clear()
        for queue in queues:
            if queue.depth is not None:
                messages.labels(queue.name, queue.role).set(queue.depth)
            if queue.consumers is not None:
                consumers.labels(queue.name, queue.role).set(queue.consumers)

    async def _measure_inbox(self) -> None:
        try:
            usage = await self._inbox.usage()
        except StoreUnavailableError:  # readiness and the log report it
            return
        if usage is not None:
            metrics = self._metrics
            metrics.inbox_bytes.labels(store=self._store).set(usage.used_bytes)
            metrics.inbox_free_bytes.labels(store=self._store).set(usage.free_bytes)
