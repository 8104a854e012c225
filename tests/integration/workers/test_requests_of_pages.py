"""Requests from pages with several workers: each process has an address for replies."""

from aio_pika.exceptions import ChannelNotFoundEntity

from tests.conftest import eventually
from tests.integration.requests.conftest import EVENT, ask, request_worker
from tests.integration.sockets.js_pages import open_pages
from tests.integration.workers.conftest import program, token_for
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

# One worker gets all of them only in one of 2^15 runs.
WINDOWS = 16


async def test_a_reply_reaches_the_worker_process_that_has_the_window(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """The back-end worker knows only `reply_to`."""
    async with (
        program(broker, namespace, redis_server, page_events=EVENT) as running,
        open_pages() as pages,
    ):
        names = [f"user-{number}" for number in range(WINDOWS)]
        for name in names:
            auth = {"token": token_for(name)}
            await pages.connected(name, running.public_url, auth=auth)

        async def is_declared() -> bool:
            try:
                async with request_worker(broker, namespace):
                    return True
            except ChannelNotFoundEntity:
                return False

        await eventually(is_declared)
        async with request_worker(broker, namespace, answer=lambda data: data):
            for name in names:

                async def is_answered(name: str = name) -> bool:
                    # Not available until this process has its connection for requests.
                    answer = await ask(pages, name, name=name)
                    return bool(answer == {"ok": True, "data": name})

                await eventually(is_answered)

        answered = 'bridge_requests_total{outcome="answered"}'
        counts = await running.of_each_worker(answered)
        assert sum(counts.values()) == WINDOWS
        assert min(counts.values()) > 0
        assert await running.sample(answered) == WINDOWS
