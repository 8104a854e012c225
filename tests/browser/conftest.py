"""The demo, the browser and the pages of the browser tests."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.browser.console_page import ConsolePage, opened_console
from tests.browser.demo_process import ANY_PORTS, DemoProcess, running_demo
from tests.browser.watched_page import WatchedPage, launch_chromium, opened_page
from tests.integration.running import (
    RunningBridge,
    Worker,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DemoProcess]:
    """Return a demo with a private node, as `make demo` starts it."""
    async with running_demo(tmp_path_factory.mktemp("demo") / "it", *ANY_PORTS) as demo:
        await demo.started()
        yield demo
        assert await demo.end(signal.SIGINT) == 0


@pytest_asyncio.fixture(loop_scope="session")
async def short_lived(tmp_path: Path, broker: LocalNode) -> AsyncIterator[DemoProcess]:
    """Return a demo on the shared broker whose tokens expire after six seconds."""
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
    """Return the page with both users live; check for errors in the browser at the end."""
    async with opened_page(browser, demo.url) as watched:
        yield watched
        watched.assert_clean()
    assert "Traceback" not in demo.err


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(broker: LocalNode) -> AsyncIterator[RunningBridge]:
    """Return a bridge that the tests of a file share and leave unchanged."""
    async with running_bridge(settings_for(broker, f"t{token_hex(4)}")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker(broker: LocalNode, running: RunningBridge) -> AsyncIterator[Worker]:
    """Return a worker that publishes to that bridge."""
    async with open_worker(broker, running.settings.namespace) as worker:
        yield worker


@pytest_asyncio.fixture(loop_scope="session")
async def fragile(broker: LocalNode, namespace: str) -> AsyncIterator[RunningBridge]:
    """Return a bridge that the test may break."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def console(
    browser: Browser, running: RunningBridge
) -> AsyncIterator[ConsolePage]:
    """Return the console, signed in; check for errors in the browser at the end."""
    async with opened_console(browser, running.listening.operator_url) as console:
        yield console
        console.assert_clean()
