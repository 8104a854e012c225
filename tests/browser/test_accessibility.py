"""axe-core finds nothing on any page, neither in light nor in dark colors."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.async_api import Browser, Page, expect

from bridge.core.properties import PERSISTENT, Properties
from tests.browser.console_page import Scheme, opened_console
from tests.browser.demo_process import DemoProcess
from tests.integration.running import RunningBridge, Worker, open_windows

pytestmark = pytest.mark.asyncio(loop_scope="session")

_AXE: Final = Path(__file__).parents[1] / "node_modules/axe-core/axe.min.js"
_RUN: Final = """async () => (await axe.run({ iframes: false })).violations.map(
  ({ id, nodes }) => [id, ...nodes.map(({ target, failureSummary }) => `${target}: ${failureSummary}`)]
)"""
_SCHEMES: Final[tuple[Scheme, ...]] = ("light", "dark")


async def violations(page: Page) -> dict[str, Any]:
    """Return what axe-core finds, for each frame of the page in which it finds something."""
    found = {}
    for frame in page.frames:
        await frame.evaluate(_AXE.read_text(encoding="utf-8"))
        found[frame.url] = await frame.evaluate(_RUN)
    return {url: each for url, each in found.items() if each}


@pytest.mark.parametrize("scheme", _SCHEMES)
async def test_the_demo_page_and_its_windows_are_accessible(
    browser: Browser, demo: DemoProcess, scheme: Scheme
) -> None:
    """The windows are pages of their own, in frames."""
    context = await browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = await context.new_page()
    await page.goto(f"{demo.url}/")
    await page.get_by_text("Open another window of ann").click()
    await page.locator("#publish").get_by_role("button").click()
    window = page.frame_locator("iframe[title='ann, window 2']")
    await expect(window.get_by_role("listitem").first).to_be_visible()
    await expect(page.locator("#lines li").first).to_be_visible()

    await window.get_by_role("button", name="Start a job").click()
    cancel = window.get_by_role("button", name=re.compile("^Cancel "))
    await expect(window.get_by_role("progressbar")).to_be_visible()
    assert await violations(page) == {}
    await cancel.click()
    await expect(window.locator("#job-note")).to_be_visible()
    assert await violations(page) == {}
    await context.close()


@pytest.mark.parametrize("scheme", _SCHEMES)
async def test_every_page_of_the_console_is_accessible(
    browser: Browser, running: RunningBridge, worker: Worker, scheme: Scheme
) -> None:
    """Also with content: a user, a message, a dead letter, a dialog and a refused origin."""
    identity = Properties(delivery_mode=PERSISTENT, message_id=b"m-1")
    running.bridge.components.sockets.refused_origins.note("https://evil.example", 1.0)
    url = running.listening.operator_url
    async with (
        open_windows(running.listening.public_url, [running.token("ann")]),
        opened_console(browser, url, scheme=scheme, is_signed_in=False) as console,
    ):
        await worker.publish("ann", {"n": 1}, properties=identity)
        await worker.publish("ann", body=b"no JSON", properties=identity)
        page = console.page
        found = {"sign-in": await violations(page)}
        await console.sign_in()
        await expect(page.locator("#dead-count")).to_be_visible()
        found["overview"] = await violations(page)
        for name, path in (
            ("Queues", "queues"),
            ("Dead letters", "dead"),
            ("Users", "users"),
            ("Trace", "trace"),
            ("Trace", "trace/m-1?user=ann"),
            ("User ann", "users/ann"),
        ):
            await console.go(name, path)
            if path not in {"trace", "trace/m-1?user=ann"}:
                await expect(console.rows.first).to_be_visible()
            found[path] = await violations(page)
        await console.go("Dead letters", "dead")
        await console.button("Discard all …").click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        found["dialog"] = await violations(page)
        await page.keyboard.press("Escape")
        await console.rows.first.get_by_role("link").click()
        await console.button("Show the body").click()
        await expect(page.locator("pre")).to_be_visible()
        found["a dead letter"] = await violations(page)

    assert {name: each for name, each in found.items() if each} == {}
