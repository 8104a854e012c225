"""The jobs of the demo: progress that survives a reload, and requests to the worker."""

import re
from typing import Final

import pytest
from playwright.async_api import FrameLocator, Locator, expect

from tests.browser.watched_page import WatchedPage

pytestmark = pytest.mark.asyncio(loop_scope="session")

_PUBLISH: Final = """(body) => fetch("/demo/publish", {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
})"""


def cancel_buttons(window: FrameLocator) -> Locator:
    """Return the buttons of the jobs that are running."""
    return window.get_by_role("button", name=re.compile("^Cancel "))


async def start_job(window: FrameLocator) -> Locator:
    """Start a job by keyboard, and return its progress bar."""
    running = await cancel_buttons(window).count()
    await window.get_by_role("button", name="Start a job").press("Enter")
    await expect(cancel_buttons(window)).to_have_count(running + 1)
    return window.get_by_role("progressbar").first


async def done_of(bar: Locator) -> float:
    """Return how much a progress bar shows."""
    return float(await bar.evaluate("bar => bar.value"))


async def end_jobs(window: FrameLocator) -> None:
    """Cancel all jobs."""
    buttons = cancel_buttons(window)
    while running := await buttons.count():
        await buttons.first.click()
        await expect(buttons).to_have_count(running - 1)


async def test_a_job_is_started_and_cancelled_by_requests(page: WatchedPage) -> None:
    """The worker answers, and every window of the user shows the end."""
    await page.open_another_window("ann")
    first, second = page.window("ann"), page.window("ann", 2)
    bar = await start_job(first)
    name = await first.locator("#jobs label").first.text_content()
    assert name is not None
    other = second.get_by_role("progressbar", name=name)
    await expect(other).to_be_visible()
    await expect(page.window("bob").get_by_role("progressbar")).to_have_count(0)

    await first.get_by_role("button", name=f"Cancel {name}").press("Enter")
    for window in (first, second):
        shown = window.get_by_role("listitem").filter(has=window.get_by_text(name))
        await expect(shown.locator(".done")).to_have_text(re.compile(r"^canceled at"))
    await expect(first.locator("#job-note")).to_have_text(f"The {name} is canceled.")
    await expect(first.get_by_role("button", name="Start a job")).to_be_focused()
    assert await done_of(bar) == await done_of(other)


async def test_a_bar_survives_a_reload_and_shows_the_newest_value_at_once(
    page: WatchedPage,
) -> None:
    """A new window receives the retained report before anything else."""
    window = page.window("ann")
    bar = await start_job(window)
    await expect(bar).not_to_have_js_property("value", 0)
    before = await done_of(bar)

    await page.page.reload()
    await page.expect_state("ann", "live")
    bar = page.window("ann").get_by_role("progressbar")
    await expect(bar).to_be_visible()
    assert await done_of(bar) >= before

    await end_jobs(page.window("ann"))
    await page.page.reload()
    await page.expect_state("ann", "live")
    await expect(page.window("ann").get_by_role("progressbar")).to_have_count(0)


async def test_a_job_that_reports_nothing_is_shown_after_a_reload(
    page: WatchedPage,
) -> None:
    """Its last report has been shown before, so only its retained value can bring it."""
    report = {"job": "import", "done": 5, "of": 10, "state": "running"}
    body = {"user": "bob", "event": "progress", "key": "import"}
    await page.page.evaluate(_PUBLISH, body | {"data": report, "retain": True})
    bar = page.window("bob").get_by_role("progressbar", name="import")
    await expect(bar).to_have_js_property("value", 5)

    await page.page.reload()
    await expect(bar).to_have_js_property("value", 5)
    ended = report | {"state": "done"}
    await page.page.evaluate(_PUBLISH, body | {"data": ended, "clear": True})
    await expect(page.window("bob").locator(".done")).to_have_text("done at 50 %")


async def test_a_user_has_three_jobs_at_most(page: WatchedPage) -> None:
    """The worker refuses the fourth, and the page shows why."""
    window = page.window("bob")
    for _ in range(3):
        await start_job(window)
    await window.get_by_role("button", name="Start a job").click()

    note = window.locator("#job-note")
    await expect(note).to_have_text("Not done: 3 jobs are running (busy)")
    await end_jobs(window)
