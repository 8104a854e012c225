"""Requests from pages while workers, the broker or its connection fail."""

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest_asyncio

from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.requests.conftest import (
    EVENT,
    ask,
    connected_page,
    request_settings,
    request_worker,
    requesting_bridge,
)
from tests.integration.requests.many_requests import (
    EVENTS,
    ask_from_windows,
    expected_code,
    replying,
)
from tests.integration.sockets.js_pages import Pages
from tests.local_node import LocalNode

# It takes one request, says so, and never replies.
_STUCK_WORKER = """
import asyncio, sys
import aio_pika

async def main(url, queue):
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(1)
    await (await channel.get_queue(queue)).consume(lambda request: print("took", flush=True))
    await asyncio.Future()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_broker() -> AsyncIterator[LocalNode]:
    """A node of this module's own, for faults."""
    async with LocalNode.start(ready_within_s=90 * SLOW_FACTOR) as node:
        yield node


@asynccontextmanager
async def stuck_worker(broker: LocalNode, queue: str) -> AsyncIterator[Process]:
    """Run the worker as a process, and kill it if the test has not."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _STUCK_WORKER,
        broker.url,
        queue,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_second_worker_answers_the_request_of_a_killed_one(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """The request stays in the queue until it is acked; the page waits for one answer."""
    settings = request_settings(broker, namespace, request_timeout="120s")
    async with requesting_bridge(settings) as running:
        await connected_page(pages, running)
        async with request_worker(broker, namespace) as declares:
            queue = await declares.channel.declare_queue(f"{namespace}.jobs")
            await queue.bind(f"{namespace}.requests", EVENT)
        async with stuck_worker(broker, queue.name) as stuck:
            asking = asyncio.create_task(ask(pages, {"id": 17}, within_s=60))
            assert stuck.stdout is not None
            assert await stuck.stdout.readline() == b"took\n"
            stuck.kill()
            async with request_worker(
                broker,
                namespace,
                answer=lambda job: job["id"],
                queue=queue.name,
            ) as second:
                assert await asking == {"ok": True, "data": 17}
                assert second.requests[0].redelivered

        assert len(pages.all("page", "answer")) == 1


async def test_a_lost_broker_answers_everything_once_and_works_again_later(
    own_broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """A request in flight, one during the outage, and one after it."""
    settings = request_settings(own_broker, namespace, request_timeout="600s")
    async with requesting_bridge(settings) as running:
        await connected_page(pages, running)
        async with request_worker(own_broker, namespace) as worker:
            pages.command("ask", "page", EVENT, 1)
            await eventually(lambda: worker.requests)
            await own_broker.shut_down()
            lost = (await pages.until("page", "answer", EVENT, within_s=60))[0]
        during = await ask(pages, 2)
        warnings = running.bridge.components.readiness.warnings()
        assert any(text.startswith("requests from pages") for text in warnings)
        await own_broker.restart()
        client = running.bridge.components.page_requests.client
        await eventually(lambda: client.problem is None, within_s=60)
        async with request_worker(own_broker, namespace, answer=lambda data: data):
            after = await ask(pages, 3)

        assert (lost["ok"], lost["code"]) == (False, "not_available")
        assert during == lost
        assert after == {"ok": True, "data": 3}
        assert len(pages.all("page", "answer")) == 3
        assert running.sample("bridge_windows") == 1


async def test_a_deleted_exchange_is_declared_again(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """RabbitMQ closes the channel of the publish that finds no exchange."""
    settings = request_settings(broker, namespace, request_timeout="600s")
    async with requesting_bridge(settings) as running:
        await connected_page(pages, running)
        async with request_worker(broker, namespace) as worker:
            await worker.channel.exchange_delete(f"{namespace}.requests")
            lost = await ask(pages, 1)
        client = running.bridge.components.page_requests.client
        await eventually(lambda: client.problem is None, within_s=30)
        async with request_worker(broker, namespace, answer=lambda data: data):
            after = await ask(pages, 2)

    assert (lost["ok"], lost["code"]) == (False, "not_available")
    assert after == {"ok": True, "data": 2}


async def test_each_of_2000_requests_of_200_windows_has_exactly_one_answer(
    broker: LocalNode, namespace: str
) -> None:
    """Among them are errors, requests without a queue or a reply, and repeated replies."""
    settings = request_settings(
        broker, namespace, page_events=EVENTS, request_timeout="5s"
    )
    async with requesting_bridge(settings) as running, replying(broker, namespace):
        answers = await ask_from_windows(
            running, requests=2000, windows=200, within_s=60
        )

        codes = {n: each for n, each in answers.items() if each != [expected_code(n)]}
        # A loaded machine may take longer than the timeout, which is also one answer.
        assert all(each == ["timeout"] for each in codes.values())
        assert sorted(answers) == list(range(2000))
        total = running.bridge.components.metrics.total("bridge_requests")
        assert total == 2000
        assert running.sample("bridge_requests_in_flight") == 0
