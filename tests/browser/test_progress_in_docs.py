"""The Celery task and the page of docs/producers.md show the progress of a job together."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aio_pika
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractExchange
from playwright.async_api import Browser, Page, Route, expect

from tests.conftest import SLOW_FACTOR
from tests.integration.running import RunningBridge
from tests.local_node import LocalNode

pytestmark = pytest.mark.asyncio(loop_scope="session")

_PAGE: Final = Path(__file__).parents[2] / "docs" / "producers.md"
_BLOCKS: Final = re.compile(
    r"## Messages that replace each other\n.*?```python\n(.*?)```.*?```html\n(.*?)```",
    re.DOTALL,
)
_LIMIT_S: Final = 30 * SLOW_FACTOR


class StandInForCelery:
    """Runs tasks in the caller's thread; their producer publishes with aio-pika."""

    def __init__(self, exchange: AbstractExchange) -> None:
        self.producer_pool = self
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()

    def task(self, *, bind: bool) -> Any:
        """Return a decorator that changes nothing."""
        assert bind
        return lambda function: function

    @contextmanager
    def acquire(self, *, block: bool, timeout: float) -> Iterator["StandInForCelery"]:
        """Return the producer."""
        assert block
        assert timeout
        yield self

    def publish(
        self,
        body: object,
        *,
        serializer: str,
        exchange: str,
        routing_key: str,
        **properties: Any,
    ) -> None:
        """Publish as kombu does, and wait for the confirm."""
        assert (serializer, exchange) == ("json", "bridge.messages")
        message = aio_pika.Message(json.dumps(body).encode(), **properties)
        work = self._exchange.publish(message, routing_key)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_LIMIT_S)


@pytest_asyncio.fixture(loop_scope="session")
async def app(
    broker: LocalNode, running: RunningBridge
) -> AsyncIterator[StandInForCelery]:
    """Return a stand-in that publishes to the bridge of the test."""
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        name = f"{running.settings.namespace}.messages"
        yield StandInForCelery(await channel.get_exchange(name))


async def open_page(
    browser: Browser, running: RunningBridge, html: str, user: str
) -> Page:
    """Open the page of the docs, as if it were on the host of the bridge."""
    url = running.listening.public_url
    script = f"<script>const token = '{running.token(user)}'</script>"
    body = script + html.replace("https://push.example.org", url)

    async def answer(route: Route) -> None:
        await route.fulfill(body=body, content_type="text/html")

    page = await browser.new_page()
    await page.route(f"{url}/page", answer)
    await page.goto(f"{url}/page")
    return page


async def test_the_bar_survives_a_reload_and_disappears_when_the_job_is_done(
    browser: Browser, running: RunningBridge, app: StandInForCelery, namespace: str
) -> None:
    """It is what most readers copy."""
    found = _BLOCKS.search(_PAGE.read_text(encoding="utf-8"))
    assert found
    may_continue = threading.Event()

    def write(row: int) -> None:
        if row == 20:
            assert may_continue.wait(_LIMIT_S)

    names: dict[str, Any] = {"app": app, "write": write}
    exec(compile(found[1], "producers.md", "exec"), names)  # noqa: S102 - a block of our own page
    task = SimpleNamespace(app=app, request=SimpleNamespace(id="17"))
    page = await open_page(browser, running, found[2], namespace)
    running_task = asyncio.create_task(
        asyncio.to_thread(names["export"], task, namespace, range(40))
    )
    bar = page.locator("#job-17")
    await expect(bar).to_have_js_property("value", 20)

    await page.reload()
    await expect(bar).to_have_js_property("value", 20)
    may_continue.set()
    await expect(bar).to_have_js_property("value", 40)
    await running_task
    await page.reload()
    await page.wait_for_function("socket.connected")
    await expect(bar).to_have_count(0)
    await page.close()
