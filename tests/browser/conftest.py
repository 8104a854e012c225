"""One demo and one browser for all tests of the page."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from bridge.broker.local_node import LocalNode
from tests.browser.demo_process import ANY_PORTS, DemoProcess, running_demo
from tests.browser.watched_page import WatchedPage, launch_chromium, opened_page


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DemoProcess]:
    """Return a demo with a private node, as `make demo` starts it."""
    async with running_demo(tmp_path_factory.mktemp("demo") / "it", *ANY_PORTS) as demo:
        await demo.started()
        yield demo
        assert await demo.end(signal.SIGINT) == 0


@pytest_asyncio.fixture(loop_scope="session")
async def short_lived(tmp_path: Path, broker: LocalNode) -> AsyncIterator[DemoProcess]:
    """Return a demo whose tokens live for seconds, on a broker that is there already."""
    flags = ("--no-node", "--amqp-url", broker.url, "--token-life", "6s")
    async with running_demo(tmp_path / "demo", *ANY_PORTS, *flags) as demo:
        await demo.started()
        yield demo


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Return a headless Chromium."""
    async with async_playwright() as playwright:
        browser = await launch_chromium(playwright)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, demo: DemoProcess) -> AsyncIterator[WatchedPage]:
    """Return the page with both users live; whatever a test does, nothing may be complained of."""
    async with opened_page(browser, demo.url) as watched:
        yield watched
        watched.assert_clean()
    assert "Traceback" not in demo.talk
