"""The demo page in a real browser, with a real broker."""

import asyncio
import subprocess
from typing import Final

import pytest
from playwright.async_api import Browser, expect

from tests.browser.demo_process import DemoProcess
from tests.browser.watched_page import WatchedPage, opened_page
from tests.conftest import SLOW_FACTOR, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

_HOSTILE: Final = '<img src="/x" onerror="alert(1)"><script>alert(2)</script>'


async def test_a_message_from_the_form_reaches_its_user_only(
    page: WatchedPage, namespace: str
) -> None:
    """Messages are delivered to the windows of one user."""
    await page.publish(f"for ann {namespace}")
    await page.publish(f"for bob {namespace}", user="bob")

    await page.expect_message("ann", f"for ann {namespace}")
    await page.expect_message("bob", f"for bob {namespace}")
    assert await page.texts("ann", namespace) == [f"for ann {namespace}"]
    assert await page.texts("bob", namespace) == [f"for bob {namespace}"]


async def test_a_message_is_shown_with_event_data_time_and_position(
    page: WatchedPage, namespace: str
) -> None:
    """The author of a page needs all parts of a message."""
    await page.publish(
        f'{{"n": [1, "{namespace}"]}}', event="order.changed", kind="JSON"
    )

    row = page.window("ann").get_by_role("listitem").filter(has_text=namespace)
    await expect(row.locator(".event")).to_have_text("order.changed")
    assert await row.locator(".data").inner_text() == f'{{"n":[1,"{namespace}"]}}'
    assert await row.locator("time").inner_text()
    assert "-" in await row.locator(".position").inner_text()


@pytest.mark.parametrize("title", ["over HTTP", "over AMQP"])
async def test_a_shell_command_works_as_printed(
    page: WatchedPage, demo: DemoProcess, title: str
) -> None:
    """It works in another terminal and folder; the page shows the same command."""
    line = demo.shell_lines[title]
    shown = page.page.locator("#lines li", has_text=title).locator("pre")
    await expect(shown).to_have_text(line)
    text = "hello from a shell" if title == "over HTTP" else "hello from a worker"

    async with asyncio.timeout(30 * SLOW_FACTOR):
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", line],
            capture_output=True,
            check=False,
            cwd="/",
            env=demo.environment,
        )

    assert done.returncode == 0, done.stderr
    await page.expect_message("ann", text)


async def test_a_shell_command_is_copied_by_its_button(
    page: WatchedPage, demo: DemoProcess
) -> None:
    """Selecting a long line by hand is error-prone."""
    await page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])

    await page.page.get_by_role("button", name="Copy: over HTTP").click()

    await expect(page.page.get_by_text("Copied")).to_be_visible()
    copied = await page.page.evaluate("navigator.clipboard.readText()")
    assert copied == demo.shell_lines["over HTTP"]


async def test_two_windows_of_a_user_both_get_everything_in_order(
    page: WatchedPage, namespace: str
) -> None:
    """A second tab must neither take messages away nor see another order."""
    await page.open_another_window("ann")

    await page.publish(namespace, count=120)

    expected = [f"{namespace} ({number} of 120)" for number in range(1, 121)]
    for number in (1, 2):
        await page.expect_message("ann", expected[-1], number=number)
        assert await page.texts("ann", namespace, number=number) == expected


async def test_many_messages_are_acked_with_few_acks(
    page: WatchedPage, namespace: str
) -> None:
    """The example page must not flood the bridge, which closes such windows."""
    await page.publish(namespace, count=120)
    await page.expect_message("ann", f"{namespace} (120 of 120)")
    newest = page.window("ann").get_by_role("listitem").first

    await page.wait_for_ack(await newest.locator(".position").inner_text())

    assert len(page.acked_offsets) < 60


async def test_a_disconnected_window_recovers_missed_messages(
    page: WatchedPage, namespace: str
) -> None:
    """The page uses the recovery of the stock client."""
    await page.publish(f"before {namespace}")
    await page.expect_message("ann", f"before {namespace}")

    await page.window("ann").get_by_role("button", name="Disconnect").click()
    await page.expect_state("ann", "cut")
    await page.publish(f"meanwhile {namespace}", count=3)
    await page.expect_state("ann", "live")

    note = page.window("ann").locator("#note")
    await expect(note).to_contain_text("Recovered: 3 messages missed")
    assert await page.texts("ann", namespace) == [
        f"before {namespace}",
        *(f"meanwhile {namespace} ({number} of 3)" for number in (1, 2, 3)),
    ]


async def test_a_window_keeps_its_position_when_it_is_loaded_again(
    page: WatchedPage, namespace: str
) -> None:
    """Another window got the messages, so they count as delivered; this one still needs them."""
    await page.open_another_window("ann")
    await page.publish(f"before {namespace}")
    await page.expect_message("ann", f"before {namespace}")
    first = next(
        frame for frame in page.page.frames if "user=ann&window=1" in frame.url
    )
    address = first.url

    await first.goto("about:blank")
    await page.publish(f"meanwhile {namespace}", count=2)
    await page.expect_message("ann", f"meanwhile {namespace} (2 of 2)", number=2)
    newest = page.window("ann", 2).get_by_role("listitem").first
    await page.wait_for_ack(await newest.locator(".position").inner_text())
    await first.goto(address)

    await page.expect_state("ann", "live")
    assert await page.texts("ann", namespace) == [
        f"meanwhile {namespace} (1 of 2)",
        f"meanwhile {namespace} (2 of 2)",
    ]


async def test_a_reloaded_page_reopens_its_windows_without_repeats(
    page: WatchedPage, namespace: str
) -> None:
    """A reload is the most common interruption."""
    await page.open_another_window("ann")
    await page.publish(namespace)
    for number in (1, 2):
        await page.expect_message("ann", namespace, number=number)

    await page.page.reload()

    for number in (1, 2):
        await page.expect_state("ann", "live", number=number)
        assert await page.texts("ann", "", number=number) == []


async def test_hostile_text_stays_text(page: WatchedPage, namespace: str) -> None:
    """The data and the event name of a message are untrusted and must not become markup."""
    await page.publish(_HOSTILE, event=_HOSTILE)
    await page.publish(
        f'{{"__proto__": "{namespace}"}}', event="__proto__", kind="JSON"
    )

    await page.expect_message("ann", namespace)
    row = page.window("ann").get_by_role("listitem").filter(has_text="onerror")
    await expect(row.locator(".event")).to_have_text(_HOSTILE)
    await expect(row.locator(".data")).to_have_text(_HOSTILE)
    assert await page.window("ann").locator("img, script:not([src])").count() == 0


async def test_invalid_json_is_reported_and_not_published(page: WatchedPage) -> None:
    """The form shows the error instead of publishing a dead letter."""
    form = page.page.locator("#publish")
    await form.get_by_role("radio", name="JSON").check()
    data = form.get_by_label("Data", exact=True)
    await data.fill('{"a": ')

    await form.get_by_role("button").click()

    await expect(page.page.locator("#result")).to_contain_text("Not JSON")
    await expect(data).to_be_focused()
    assert not [url for url in page.addresses if url.endswith("/demo/publish")]


async def test_a_refused_event_name_is_explained(page: WatchedPage) -> None:
    """The page shows the error of the server."""
    form = page.page.locator("#publish")
    await form.get_by_label("Event").fill("bridge:sync")
    await form.get_by_role("button").click()

    await expect(page.page.locator("#result")).to_contain_text("event")
    # Chromium logs every response with status 400 and above.
    await eventually(lambda: len(page.browser_errors) == 1)
    assert "422" in page.browser_errors.pop()


async def test_a_window_is_closed_by_its_button(page: WatchedPage) -> None:
    """The focus moves to a useful element after the window is closed."""
    await page.open_another_window("bob")

    await page.page.get_by_role("button", name="Close window 2 of bob").click()

    await expect(page.page.locator("[data-user=bob] iframe")).to_have_count(1)
    await expect(page.page.get_by_text("Open another window of bob")).to_be_focused()


async def test_the_page_is_usable_with_the_keyboard_only(
    page: WatchedPage, namespace: str
) -> None:
    """Publishing and disconnecting a window need no mouse."""
    keyboard = page.page.keyboard
    focused = "document.activeElement?.name ?? ''"
    for _ in range(20):
        await keyboard.press("Tab")
        if await page.page.evaluate(focused) == "data":
            break
    await keyboard.press("Control+A")
    await keyboard.type(namespace)
    await keyboard.press("Control+Enter")
    await page.expect_message("ann", namespace)

    cut = page.window("ann").get_by_role("button", name="Disconnect")
    for _ in range(20):
        await keyboard.press("Tab")
        if await cut.evaluate("button => button === document.activeElement"):
            break
    await keyboard.press("Enter")

    await page.expect_state("ann", "cut")
    await page.expect_state("ann", "live")


async def test_without_javascript_the_page_says_so(
    browser: Browser, demo: DemoProcess
) -> None:
    """Otherwise "connecting" would be shown forever."""
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    for path in ("/", "/demo/window.html"):
        await page.goto(f"{demo.url}{path}")
        # Without JavaScript, this is the text as rendered; Playwright cannot search in it.
        assert "needs JavaScript" in await page.locator("noscript").inner_text()
        await expect(page.get_by_text("connecting")).to_be_hidden()
    await context.close()


@pytest.mark.parametrize("width", [320, 768])
async def test_the_page_fits_on_a_narrow_screen(page: WatchedPage, width: int) -> None:
    """On a phone the page must not scroll horizontally."""
    await page.page.set_viewport_size({"width": width, "height": 800})

    for frame in page.page.frames:
        overflow = "document.documentElement.scrollWidth - innerWidth"
        assert await frame.evaluate(overflow) <= 0, frame.url


async def test_a_token_is_renewed_before_it_expires(
    browser: Browser, short_lived: DemoProcess
) -> None:
    """A window stays on the same connection over several tokens."""
    async with opened_page(browser, short_lived.url) as page:
        renewals = '42["bridge:refresh"'
        await eventually(
            lambda: sum(renewals in frame for frame in page.sent) >= 4, within_s=30
        )

        await page.expect_live()
        assert page.sockets == 2
        page.assert_clean()


async def test_a_window_with_an_expired_token_reconnects_with_a_new_one(
    browser: Browser, short_lived: DemoProcess, namespace: str
) -> None:
    """A page can leave the state expired, without losing messages."""
    async with opened_page(browser, short_lived.url) as page:
        window = page.window("ann")
        await window.get_by_label("renew the token").uncheck()
        await page.expect_state("ann", "closed")
        await expect(window.locator("#state")).to_have_text("expired")
        await page.publish(namespace)

        await window.get_by_role("button", name="Connect again").click()

        await page.expect_state("ann", "live")
        await page.expect_message("ann", namespace)
        page.assert_clean()
