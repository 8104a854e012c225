"""Throttled keys with the stock client in Chromium."""

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from bridge.core.message_options import MessageOptions, render_options
from bridge.core.properties import PERSISTENT, Properties
from tests.integration.running import RunningBridge, Worker

pytestmark = pytest.mark.asyncio(loop_scope="session")

_OPEN: Final = """async (token) => {
  window.got = [];
  window.socket = io({ auth: { token }, transports: ["websocket"], reconnectionDelay: 10 });
  socket.onAny((event, data) => {
    if (!event.startsWith("bridge:")) window.got.push([data, performance.now()]);
  });
  await new Promise((resolve) => socket.on("bridge:sync", resolve));
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def window(
    browser: Browser, running: RunningBridge, namespace: str
) -> AsyncIterator[Page]:
    """Return a page that is connected as a user of its own, named by the namespace."""
    page = await browser.new_page()
    await page.goto(f"{running.listening.public_url}/health/live")
    await page.add_script_tag(
        url=f"{running.listening.public_url}/socket.io/socket.io.js"
    )
    await page.evaluate(_OPEN, running.token(namespace))
    yield page
    await page.close()


def throttled(throttle_s: float) -> Properties:
    """Return properties with a key and an interval."""
    options = MessageOptions(key="job", throttle_s=throttle_s)
    return Properties(delivery_mode=PERSISTENT, headers=render_options(options))


async def got(page: Page) -> list[tuple[Any, float]]:
    """Return the data and the time, in milliseconds, of all messages."""
    return [(data, at_ms) for data, at_ms in await page.evaluate("window.got")]


async def test_a_page_draws_four_times_a_second(
    window: Page, worker: Worker, namespace: str
) -> None:
    """The worker reports as fast as it can, and the page shows its last report."""
    for number in range(1000):
        await worker.publish(namespace, number, properties=throttled(0.25))
    await window.wait_for_function("window.got.at(-1)[0] === 999")

    shown = await got(window)
    assert all(before < after for (before, _), (after, _) in pairwise(shown))
    elapsed_ms = shown[-1][1] - shown[0][1]
    assert len(shown) <= elapsed_ms / 250 + 5


async def test_a_page_that_reconnects_receives_what_was_held_back_and_nothing_twice(
    window: Page, worker: Worker, namespace: str
) -> None:
    """The position of the message that overtook the value says what is missing."""
    for number in (1, 2, 3):
        await worker.publish(namespace, number, properties=throttled(3600))
    await worker.publish(namespace, "plain")
    await window.wait_for_function("window.got.length === 2")

    await window.evaluate("socket.io.engine.close()")
    await window.wait_for_function("window.got.length > 2 && socket.recovered")

    assert [data for data, _ in await got(window)] == [1, "plain", 3]
