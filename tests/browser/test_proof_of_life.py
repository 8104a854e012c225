"""Chromium sends the same close frame for a page that is left and for one that died."""

import asyncio
import os
import signal
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.conftest import eventually
from tests.integration.sockets.running_server import RunningServer, open_server
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="session")

_OPEN_PAGE = """async (token) => {
  window.got = [];
  const socket = io({ auth: { token }, transports: ["websocket"] });
  socket.on("message", (data) => window.got.push(data));
  await new Promise((resolve) => socket.on("bridge:sync", resolve));
}"""


async def open_window(server: RunningServer, page: Page) -> None:
    """Load the page, also again, and connect as alice."""
    await page.goto(f"{server.url}/health/live")
    await page.add_script_tag(url=f"{server.url}/socket.io/socket.io.js")
    await page.evaluate(_OPEN_PAGE, token())


async def got(page: Page) -> Any:
    """Return what the page has received."""
    return await page.evaluate("window.got")


async def renderers(browser: Browser) -> set[int]:
    """Return the process ids of all pages."""
    session = await browser.new_browser_cdp_session()
    info = await session.send("SystemInfo.getProcessInfo")
    await session.detach()
    return {each["id"] for each in info["processInfo"] if each["type"] == "renderer"}


async def test_a_reload_repeats_nothing_that_was_shown(browser: Browser) -> None:
    """The page has answered all pings."""
    async with open_server() as server:
        page = await browser.new_page()
        await open_window(server, page)
        await server.store("alice", "shown")
        await page.wait_for_function("window.got.length")

        await open_window(server, page)

        assert await got(page) == []
        await page.close()


async def test_a_new_page_gets_what_a_frozen_one_has_not_shown(
    browser: Browser,
) -> None:
    """The browser reads the messages, but the page did not answer the ping after them."""
    async with open_server() as server:
        others = await renderers(browser)
        context = await browser.new_context()
        frozen = await context.new_page()
        await open_window(server, frozen)
        # One of them is a spare process for the next page.
        processes = await renderers(browser) - others
        for process_id in processes:
            os.kill(process_id, signal.SIGSTOP)
        await server.store("alice", 1, 2)
        server.tick(later_s=26)
        for process_id in processes:
            os.kill(process_id, signal.SIGKILL)
        await eventually(lambda: not server.windows("alice"))

        page = await browser.new_page()
        await open_window(server, page)
        assert await got(page) == [1, 2]
        await page.close()
        async with asyncio.timeout(10):
            await context.close()
