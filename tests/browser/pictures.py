"""
Take the screenshot of the demo page for the docs: `python -m tests.browser.pictures`.

It is a program and not a test, so that a test run does not change the working tree.
"""

import asyncio
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.async_api import Route, async_playwright, expect

from tests.browser.console_pictures import compress
from tests.browser.demo_process import ANY_PORTS, running_demo
from tests.browser.watched_page import WatchedPage, launch_chromium, opened_page

_PICTURES: Final = Path(__file__).parents[2] / "docs"
_ORDER: Final = '{"order": 17, "state": "shipped", "items": ["lamp", "rug"]}'


async def main(folder: Path) -> None:
    """Start a demo, publish some messages, and save a screenshot."""
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            running_demo(Path(scratch) / "demo", *ANY_PORTS) as demo,
            async_playwright() as playwright,
        ):
            await demo.started()
            browser = await launch_chromium(playwright)
            async with opened_page(browser, demo.url) as page:
                await page.page.context.route("**/demo/facts", _with_short_path)
                await page.page.reload()
                await page.expect_live()
                await _publish_messages(page)
                await _start_job(page)
                await page.page.emulate_media(reduced_motion="reduce")
                picture = folder / "demo.png"
                await page.page.screenshot(path=picture, full_page=True)
                await asyncio.to_thread(compress, picture)
            await browser.close()
            await demo.end(signal.SIGINT)


async def _with_short_path(route: Route) -> None:
    """Replace the path of the program on this machine by the usual one."""
    answer = await route.fetch()
    text = await answer.text()
    program = f"{sys.executable} -m bridge"
    await route.fulfill(response=answer, body=text.replace(program, ".venv/bin/bridge"))


async def _publish_messages(page: WatchedPage) -> None:
    await page.open_another_window("ann")
    await page.publish("Welcome back, bob", user="bob")
    await page.publish("Your export is ready", count=2)
    await page.expect_message("bob", "Welcome back, bob")
    await page.window("bob").get_by_role("button", name="Disconnect").click()
    await page.expect_state("bob", "cut")
    await page.publish(_ORDER, user="bob", event="order.changed", kind="JSON", count=2)
    await page.expect_state("bob", "live")
    await page.publish(_ORDER, event="order.changed", kind="JSON")
    for number in (1, 2):
        await page.expect_message("ann", '"shipped"', number=number)


async def _start_job(page: WatchedPage) -> None:
    """Start a job of ann, and wait until it shows some progress in both windows."""
    await page.window("ann").get_by_role("button", name="Start a job").click()
    for number in (1, 2):
        done = page.window("ann", number).locator("#jobs .done")
        await expect(done).to_have_text(re.compile(r"^[3-9]\d %"))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else _PICTURES))
