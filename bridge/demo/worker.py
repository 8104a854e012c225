"""
The worker of the demo: jobs that report their progress, and that the page starts and cancels.

It is a program like yours: it uses aio-pika, and nothing of bridge. A job reports far more
often than a page can show. `x-bridge-throttle` makes that four times a second, `x-bridge-key`
keeps the newest report alone, and `x-bridge-retain` gives it to each new window first.
"""

import asyncio
import json
from contextlib import suppress
from itertools import count
from typing import Final

import aio_pika
import structlog
from aio_pika.abc import (
    AbstractChannel,
    AbstractExchange,
    AbstractIncomingMessage,
    HeadersType,
)
from aio_pika.exceptions import AMQPError
from yarl import URL

log = structlog.get_logger(__name__)

_RETRY_S: Final = 1.0
_TIMEOUT_S: Final = 5.0
_STEPS: Final = 2000
_STEP_S: Final = 0.005
_JOBS_MAX: Final = 3  # of each user
_EXPIRES_S: Final = 60  # a job that stops to report disappears from new windows


class RequestError(Exception):
    """An error that the page is told."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DemoWorker:
    """Processes the requests `job.start` and `job.cancel`."""

    def __init__(self, amqp_url: str, namespace: str) -> None:
        self._amqp_url = amqp_url
        self._namespace = namespace
        self._numbers = count(1)
        self._jobs: dict[tuple[str, str], asyncio.Task[None]] = {}  # by user and job

    async def run(self) -> None:
        """Work until cancelled, as long as there is a broker."""
        task = asyncio.current_task()
        # aio-pika may raise an error of its own instead of CancelledError.
        while task is None or not task.cancelling():
            try:
                await self._run_connected()
            except* (AMQPError, OSError, TimeoutError) as group:
                # Also until bridge has declared the exchanges.
                log.debug("demo.worker_waits", problems=group.exceptions)
            await asyncio.sleep(_RETRY_S)

    async def _run_connected(self) -> None:
        # Closed also if it is cancelled while it connects: otherwise, it would connect again
        # and again in a task that cannot be cancelled, and the program would not end.
        connection = aio_pika.RobustConnection(URL(self._amqp_url))
        async with connection, asyncio.TaskGroup() as jobs:
            await connection.connect(timeout=_TIMEOUT_S)
            await self._consume(await connection.channel(), jobs)

    async def _consume(self, channel: AbstractChannel, jobs: asyncio.TaskGroup) -> None:
        messages = await channel.get_exchange(f"{self._namespace}.messages")
        queue = await channel.declare_queue(exclusive=True)
        for event in ("job.start", "job.cancel"):
            await queue.bind(f"{self._namespace}.requests", event)

        async def process(request: AbstractIncomingMessage) -> None:
            async with request.process():
                user, kind = str(request.headers["x-bridge-user"]), None
                try:
                    if request.routing_key == "job.start":
                        reply = self._start(user, messages, jobs)
                    else:
                        reply = self._cancel(user, json.loads(request.body))
                except RequestError as exc:
                    reply, kind = {"code": exc.code, "message": str(exc)}, "error"
                answer = aio_pika.Message(
                    json.dumps(reply).encode(),
                    type=kind,
                    correlation_id=request.correlation_id,
                )
                await channel.default_exchange.publish(answer, request.reply_to or "")

        await queue.consume(process)
        await asyncio.Future()

    def _start(
        self, user: str, messages: AbstractExchange, jobs: asyncio.TaskGroup
    ) -> dict[str, str]:
        if sum(owner == user for owner, _ in self._jobs) >= _JOBS_MAX:
            raise RequestError("busy", f"{_JOBS_MAX} jobs are running")
        job = f"export {next(self._numbers)}"
        task = jobs.create_task(self._work(user, job, messages), name=job)
        self._jobs[user, job] = task
        task.add_done_callback(lambda _: self._jobs.pop((user, job)))
        return {"job": job}

    def _cancel(self, user: str, job: object) -> dict[str, str]:
        name = job.get("job") if isinstance(job, dict) else None
        task = self._jobs.get((user, str(name)))
        if task is None:
            raise RequestError("gone", "the job has ended")
        task.cancel()
        return {"job": str(name)}

    async def _work(self, user: str, job: str, messages: AbstractExchange) -> None:
        async def report(done: int, state: str) -> None:
            headers: HeadersType = {"x-bridge-key": job}
            if state == "running":
                headers |= {"x-bridge-retain": True, "x-bridge-throttle": "250ms"}
            else:
                headers |= {"x-bridge-clear": True}
            data = {"job": job, "done": done, "of": _STEPS, "state": state}
            message = aio_pika.Message(
                json.dumps(data).encode(),
                type="progress",
                headers=headers,
                expiration=_EXPIRES_S,
            )
            # Without a connection this report is missing, and the next one replaces it.
            with suppress(AMQPError, ConnectionError, TimeoutError):
                await messages.publish(message, user, timeout=_TIMEOUT_S)

        done = 0
        try:
            while done < _STEPS:
                await report(done, "running")
                await asyncio.sleep(_STEP_S)
                done += 1
            await report(done, "done")
        except asyncio.CancelledError:
            await report(done, "canceled")
            raise
