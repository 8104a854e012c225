"""
Two tests that never end, with all kinds of processes that tests start.

Not collected by itself: test_interrupted_runs.py has it run, and interrupts it.
"""

import asyncio
import os
from pathlib import Path

from playwright.async_api import async_playwright

from bridge.demo.processes import KeptProcesses
from tests.browser.watched_page import launch_chromium
from tests.integration.sockets.js_pages import open_pages
from tests.redis_server import RedisServer

READY = "GUARDED_RUN_READY"


async def test_servers(tmp_path: Path) -> None:
    """Redis, one of two frozen, and a keeper, as RabbitMQ, HAProxy and nginx have."""
    async with (
        RedisServer.start(tmp_path / "1") as frozen,
        RedisServer.start(tmp_path / "2"),
        KeptProcesses.open() as kept,
    ):
        await kept.start("kept", ["sleep", "600"], {})
        frozen.pause()
        await _tell_and_stay("servers")


async def test_pages() -> None:
    """A browser with a page, and clients in Node."""
    async with async_playwright() as playwright, open_pages():
        browser = await launch_chromium(playwright)
        await browser.new_page()
        await _tell_and_stay("pages")


async def _tell_and_stay(name: str) -> None:
    draft = Path(os.environ[READY]).with_name(name)
    draft.write_text(str(os.getpid()))
    draft.rename(Path(os.environ[READY], name))
    await asyncio.Event().wait()
