"""The demo's worker ends when it is cancelled, whatever its connection does."""

import asyncio
from typing import Any, Final

import aio_pika
import pytest
from aio_pika.exceptions import AMQPConnectionError

from bridge.demo.worker import DemoWorker
from tests.conftest import SLOW_FACTOR, eventually

_LIMIT_S: Final = 10.0


def _started(port: int) -> asyncio.Task[None]:
    work = DemoWorker(f"amqp://guest:guest@127.0.0.1:{port}/", "demo").run()
    return asyncio.create_task(work, name="worker")


async def _assert_one_cancellation_ends(
    worker: asyncio.Task[None], others: set[asyncio.Task[Any]]
) -> None:
    worker.cancel()
    done, _ = await asyncio.wait({worker}, timeout=_LIMIT_S * SLOW_FACTOR)
    left = asyncio.all_tasks() - others
    while pending := asyncio.all_tasks() - others:  # or the test would not end
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.1)
    assert done
    assert left == set()


async def test_a_worker_that_is_cancelled_while_it_connects_leaves_no_task() -> None:
    """A task of aio-pika that reconnects ignores its cancellation: the demo could not exit."""
    writers: list[asyncio.StreamWriter] = []
    # It never answers.
    async with await asyncio.start_server(
        lambda _, writer: writers.append(writer), "127.0.0.1", 0
    ) as server:
        tasks = asyncio.all_tasks()
        worker = _started(server.sockets[0].getsockname()[1])
        await eventually(lambda: writers)

        await _assert_one_cancellation_ends(worker, tasks)

        for writer in writers:
            writer.close()


async def test_a_cancellation_that_becomes_an_error_of_the_connection_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aio-pika raises an error of its own if the broker closes a channel at that moment."""
    connecting = asyncio.Event()

    async def connect(*_: object, **__: object) -> None:
        connecting.set()
        try:
            await asyncio.Future()
        except asyncio.CancelledError as exc:
            raise AMQPConnectionError from exc

    monkeypatch.setattr(aio_pika.RobustConnection, "connect", connect)
    tasks = asyncio.all_tasks()
    worker = _started(1)
    await eventually(connecting.is_set)

    await _assert_one_cancellation_ends(worker, tasks)
