"""Dead letters in the console: found, shown, redriven and discarded by keyboard."""

from typing import Final
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser, Locator, expect

from bridge.core.properties import PERSISTENT, Properties
from tests.browser.console_page import NARROW, ConsolePage, opened_console
from tests.conftest import eventually
from tests.integration.running import (
    RunningBridge,
    Worker,
    open_windows,
    open_worker,
)
from tests.local_node import LocalNode

pytestmark = pytest.mark.asyncio(loop_scope="session")

_HOSTILE: Final = '<img src=x onerror=alert(1)>\u202e"><script>alert(2)</script>'


async def kill(
    running: RunningBridge,
    worker: Worker,
    user: str,
    *bodies: bytes,
    event: str = "message",
) -> None:
    """Publish messages that become dead letters, and wait until they are."""
    before = dead_so_far(running)
    for number, body in enumerate(bodies):
        properties = Properties(
            delivery_mode=PERSISTENT,
            message_id=f"{user[:20]}-{number}".encode(),
            type=event.encode(),
        )
        await worker.publish(user, body=body, properties=properties)
    await eventually(lambda: dead_so_far(running) == before + len(bodies))


def dead_so_far(running: RunningBridge) -> float:
    """Return how many dead letters the bridge has made."""
    settled = "bridge_deliveries_settled_total"
    reasons = ("malformed_body", "too_large", "bad_event")
    return sum(
        running.sample(settled, outcome="dead_letter", reason=reason)
        for reason in reasons
    )


async def press(console: ConsolePage, button: Locator) -> None:
    """Move the focus to a button with Tab, and press it."""
    await console.press_until(button)
    await console.page.keyboard.press("Enter")


async def test_dead_letters_are_filtered_and_paged(
    console: ConsolePage, running: RunningBridge, worker: Worker
) -> None:
    """The filter is part of the URL, so it can be shared and is in the history."""
    page = console.page
    bodies = [b"no JSON %d" % number for number in range(55)]
    await kill(running, worker, "filter", *bodies)
    await kill(running, worker, "filter-too", b"x" * 300_000)
    await console.go("Dead letters", "dead?user=filter")

    await expect(console.rows).to_have_count(50)
    await console.button("Next page").click()
    await expect(console.rows).to_have_count(5)
    await expect(console.title).to_be_focused()  # that was the last page
    await console.button("Previous page").click()
    await expect(console.rows).to_have_count(50)
    await page.get_by_label("User", exact=True).fill("")
    await page.get_by_label("Reason").select_option("too_large")
    await page.keyboard.press("Enter")
    await expect(console.rows).to_have_count(1)
    await expect(console.rows).to_contain_text("filter-too")
    await expect(console.rows).to_contain_text("293 KiB")
    await page.go_back()
    await expect(page.get_by_label("User", exact=True)).to_have_value("filter")
    await expect(console.rows).to_have_count(50)


async def test_dates_of_the_filter_are_not_cut_off(
    browser: Browser, running: RunningBridge
) -> None:
    """A date with a time is the widest field; Firefox cuts off the time if it is narrow."""
    url = running.listening.operator_url
    async with opened_console(browser, url, size=(390, 844)) as console:
        await console.go("Dead letters", "dead")
        for name in ("Dead since", "Until"):
            field = console.page.locator("form").get_by_label(name)
            needed = "input => { input.style.width = 'max-content'; return input.offsetWidth; }"
            width = await field.evaluate("input => input.offsetWidth")
            assert width >= await field.evaluate(needed)


async def test_a_hostile_dead_letter_is_shown_as_text_and_its_body_on_request(
    browser: Browser, running: RunningBridge, worker: Worker
) -> None:
    """The names, events and bodies of dead letters are unchecked input."""
    await kill(running, worker, _HOSTILE, _HOSTILE.encode(), event="connect")
    await kill(running, worker, "r" * 255, b"\xff\xfe", event="e" * 100)
    url = running.listening.operator_url
    async with opened_console(browser, url, size=NARROW) as console:
        page = console.page
        long = "r" * 255
        shown = _HOSTILE.replace("\u202e", "\\u202e")
        for user, event, body in ((shown, "connect", shown), (long, "e" * 100, "//4=")):
            await console.go("Dead letters", f"dead?{urlencode({'event': event})}")
            await expect(console.rows).to_contain_text([user])
            assert await console.fits()
            await console.rows.get_by_role("link").click()
            await expect(console.title).to_have_text("Dead letter")
            await expect(page.locator("main")).to_contain_text(user)
            await expect(page.locator("main")).not_to_contain_text("//4=")
            await expect(page.locator("pre")).to_have_count(0)
            await console.button("Show the body").click()
            await expect(page.locator("pre")).to_have_text(body)
            assert await console.fits()
        console.assert_clean()
        assert await page.locator("img[src=x]").count() == 0


async def test_a_dead_letter_redriven_by_keyboard_reaches_its_user(
    browser: Browser, fragile: RunningBridge, broker: LocalNode
) -> None:
    """The cause is fixed, the dead letter is selected, and its user receives the message."""
    tokens = [fragile.token("ann")]
    url = fragile.listening.public_url
    async with (
        open_worker(broker, fragile.settings.namespace) as worker,
        open_windows(url, tokens) as (ann,),
        opened_console(browser, fragile.listening.operator_url) as console,
    ):
        body = b'"' + b"x" * 300_000 + b'"'
        await kill(fragile, worker, "ann", body, body)
        larger = fragile.settings.model_copy(update={"max_message_bytes": 500_000})
        await fragile.bridge.reload(larger)
        dialog = console.page.get_by_role("dialog")
        await console.go("Dead letters", "dead")

        await console.press_until(console.rows.first.get_by_role("checkbox"))
        await console.page.keyboard.press("Space")
        await expect(console.page.get_by_text("1 selected")).to_be_visible()
        redrive = console.button("Redrive selected …")
        await console.press_until(redrive, "Shift+Tab")
        await console.page.keyboard.press("Enter")
        await expect(dialog).to_contain_text("Redrive 1 dead letter?")
        await press(console, dialog.get_by_role("button", name="Redrive 1"))

        await expect(console.page.locator("#says")).to_contain_text("1 of 1")
        await expect(console.rows).to_have_count(1)
        await eventually(lambda: len(ann.data()) == 1)
        await expect(console.page.locator("#dead-count")).to_have_text("1")
        # The button is disabled now, because nothing is chosen.
        await expect(console.title).to_be_focused()

        await console.rows.get_by_role("link").click()
        await expect(console.title).to_have_text("Dead letter")
        await press(console, console.button("Redrive …"))
        await press(console, dialog.get_by_role("button", name="Redrive 1"))
        await expect(
            console.page.get_by_text("is no longer in the queue")
        ).to_be_visible()
        await expect(console.title).to_be_focused()
        console.assert_clean(but="status of 404")


async def test_a_discard_by_keyboard_needs_the_number_typed(
    browser: Browser, fragile: RunningBridge, broker: LocalNode
) -> None:
    """It cannot be undone, so a single key must not discard; Escape cancels."""
    async with (
        open_worker(broker, fragile.settings.namespace) as worker,
        opened_console(browser, fragile.listening.operator_url) as console,
    ):
        await kill(fragile, worker, "ann", b"1x", b"2x", b"3x")
        await kill(fragile, worker, "bob", b"4x")
        page = console.page
        dialog = page.get_by_role("dialog")
        await console.go("Dead letters", "dead?user=ann")
        await expect(console.rows).to_have_count(3)

        await press(console, console.button("Discard all matching …"))
        await expect(dialog).to_contain_text("Discard 3 dead letters?")
        await page.keyboard.press("Escape")
        await expect(dialog).to_have_count(0)
        await press(console, console.button("Discard all matching …"))
        await expect(dialog.get_by_label("Type 3 to confirm")).to_be_focused()
        await page.keyboard.type("4")
        await page.keyboard.press("Enter")
        await expect(dialog).to_be_visible()
        await page.keyboard.press("Backspace")
        await page.keyboard.type("3")
        await page.keyboard.press("Enter")

        await expect(page.locator("#says")).to_contain_text("Discard done: 3 of 3")
        await expect(
            page.get_by_text("No dead letter matches the filter.")
        ).to_be_visible()
        await expect(page.locator("#dead-count")).to_have_text("1")
        console.assert_clean()
