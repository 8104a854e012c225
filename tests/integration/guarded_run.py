"""
Two tests that never end, with every kind of process that tests start.

Pytest does not collect this file: test_interrupted_runs.py runs and interrupts it.
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
    """Start a frozen and a running Redis, and a keeper of processes."""
    async with (
        RedisServer.start(tmp_path / "1") as frozen,
        RedisServer.start(tmp_path / "2"),
        KeptProcesses.open() as kept,
    ):
        await kept.start("kept", ["sleep", "600"], {})
        frozen.pause()
        await _report_and_wait("servers")


async def test_pages() -> None:
    """Start a browser with a page, and clients in Node."""
    async with async_playwright() as playwright, open_pages():
        browser = await launch_chromium(playwright)
        await browser.new_page()
        await _report_and_wait("pages")


async def _report_and_wait(name: str) -> None:
    draft = Path(os.environ[READY]).with_name(name)
    draft.write_text(str(os.getpid()))
    draft.rename(Path(os.environ[READY], name))
    await asyncio.Event().wait()
