"""Hostile text in every field that the console receives, from producers, pages or brokers."""

from typing import Final

import pytest
from playwright.async_api import Browser, expect

from bridge.core.properties import PERSISTENT, Properties
from tests.browser.console_page import opened_console
from tests.conftest import eventually
from tests.integration.running import RunningBridge, Worker, open_windows

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE: Final = (
    "\"'><img src=x onerror=alert(1)><a href=javascript:alert(2)>x</a>",
    "javascript:alert(3)//</script><script>alert(4)</script>",
)
PAGES: Final = (
    "",
    "users",
    "users/mallory",
    "dead",
    "queues",
    "trace/m-1?user=mallory",
)
# Replaces all texts in answers, except times, which the console could not show at all.
POISON: Final = """
  const poisoned = (value) =>
    typeof value === "string" ? (/^20\\d\\d-/.test(value) ? value : TEXT)
    : Array.isArray(value) ? value.map(poisoned)
    : value && typeof value === "object"
      ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, poisoned(v)]))
    : value;
  const parse = JSON.parse;
  JSON.parse = (...all) => poisoned(parse(...all));
"""


@pytest.mark.parametrize("text", HOSTILE)
async def test_no_field_of_an_answer_becomes_markup(
    browser: Browser, running: RunningBridge, worker: Worker, text: str
) -> None:
    """A page may fail at values that no bridge sends, but it must not run them."""
    properties = Properties(delivery_mode=PERSISTENT, message_id=b"m-1")
    await worker.publish("mallory", 1, properties=properties)
    await worker.publish("mallory", body=b"{", properties=properties)
    await eventually(lambda: running.settled("dead_letter", "malformed_body") > 0)
    token = running.token("mallory")
    async with (
        open_windows(running.listening.public_url, [token]),
        opened_console(browser, running.listening.operator_url) as console,
    ):
        page = console.page
        # The browser runs it before the console's own scripts.
        await page.add_init_script(POISON.replace("TEXT", repr(text)))
        for path in PAGES:
            await page.goto("about:blank")
            await page.goto(f"{console.url}/console#/{path}")
            await expect(page.locator("main")).to_contain_text(text)
            for button in await page.get_by_role("button", name="Show").all():
                await button.click()
            links = (
                "all => all.map(a => a.href).filter(each => !each.startsWith(origin))"
            )
            assert await page.eval_on_selector_all("a", links) == []
            # The console's own icon is above its title.
            markup = "main img, main script, [onerror], [onclick], iframe, object"
            assert await page.locator(markup).count() == 0
            assert await page.locator("img").count() == 1
        console.assert_clean()
