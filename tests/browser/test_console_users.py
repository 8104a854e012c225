"""Users and messages in the console, also with hostile names."""

from datetime import UTC, datetime, timedelta
from time import time
from typing import Final

import pytest
from playwright.async_api import Browser, Route, expect

from bridge.core.message_options import MessageOptions, render_options
from bridge.core.properties import PERSISTENT, Properties
from bridge.enums import PresenceChange
from tests.browser.console_page import NARROW, ConsolePage, opened_console
from tests.conftest import eventually
from tests.integration.running import RunningBridge, Worker, open_windows

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE: Final = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "a/b?c#d%2Fe&f=g",
    "..",
    "ann\u202egnp.exe\u200b",
    "\u05e9\u05dc\u05d5\u05dd",
    "👩‍👩‍👧‍👦" * 10,
    "u" * 255,
)


def seen(text: str) -> str:
    """Return the text as the console shows it."""
    return text.replace("\u202e", "\\u202e").replace("\u200b", "\\u200b")


async def publish(
    worker: Worker, user: str, data: object, *, message_id: str, event: str = "message"
) -> None:
    """Publish one message that can be traced."""
    properties = Properties(
        delivery_mode=PERSISTENT, message_id=message_id.encode(), type=event.encode()
    )
    await worker.publish(user, data, properties=properties)


async def stored(running: RunningBridge, user: str, *, count: int) -> None:
    """Wait until the inbox of `user` has `count` messages."""

    async def is_there() -> bool:
        return (await running.bridge.components.inbox.state(user)).last >= count

    await eventually(is_there)


async def test_a_user_is_found_with_windows_and_inbox(
    console: ConsolePage, running: RunningBridge, worker: Worker
) -> None:
    """A search by the first letters leads to the inbox; its data is shown on request."""
    page = console.page
    token = running.token("anna")
    async with open_windows(running.listening.public_url, [token, token]) as pages:
        await publish(worker, "anna", "a secret", message_id="m-1", event="order")
        await publish(worker, "annabel", 1, message_id="m-2")
        options = MessageOptions(key="k", is_retained=True)
        retain = Properties(delivery_mode=PERSISTENT, headers=render_options(options))
        await worker.publish("anna", 40, properties=retain)
        await stored(running, "anna", count=2)
        await stored(running, "annabel", count=1)
        await eventually(lambda: pages[0].data("order"))
        await pages[0].websocket.send_str(
            "3"
        )  # it is alive, so the message is delivered
        await console.go("Users", "users")

        await page.get_by_label("Name begins with").fill("anna")
        await page.keyboard.press("Enter")
        await expect(console.rows).to_have_count(2)
        await page.get_by_label("online only").check()
        await page.keyboard.press("Enter")
        await expect(console.rows).to_have_count(1)
        await page.get_by_role("link", name="anna", exact=True).click()

        windows = page.get_by_role("table", name="Windows")
        await expect(windows.locator("tbody tr")).to_have_count(2)
        await expect(windows).to_contain_text("websocket")
        retained = page.get_by_role("table", name="Retained messages")
        await expect(retained.locator("tbody tr")).to_have_count(1)
        await expect(retained.get_by_role("rowheader")).to_have_text("k")
        presence = page.get_by_role("table", name="Presence")
        await expect(presence.locator("tbody tr")).to_contain_text(
            ["first window connected"]
        )
        inbox = page.get_by_role("table", name="Messages in the inbox")
        await expect(inbox.locator("tbody tr")).to_contain_text(["", "m-1"])
        await expect(inbox).to_contain_text("delivered")
        assert "secret" not in await inbox.inner_text()
        await console.button("Show the data").click()
        await expect(inbox.locator("pre")).to_have_text(["40", '"a secret"'])


async def test_the_presence_of_a_user_is_listed(
    console: ConsolePage, running: RunningBridge
) -> None:
    """Newest first, with what was published for workers, also when the user has gone."""
    page = console.page
    journal = running.bridge.components.sockets.rooms.journal
    async with open_windows(running.listening.public_url, [running.token("lea")] * 2):
        journal.presence("lea", PresenceChange.ONLINE, at_s=time())

    def has_gone() -> bool:
        (_, last), *_ = journal.presence_of("lea", limit=1)
        return last is PresenceChange.DISCONNECTED

    await eventually(has_gone)
    journal.presence("lea", PresenceChange.OFFLINE, at_s=time())
    await console.go("User lea", "users/lea")

    presence = page.get_by_role("table", name="Presence, newest first")
    await expect(presence.locator("tbody tr")).to_contain_text(
        [
            "user.offline was published",
            "last window closed",
            "user.online was published",
            "first window connected",
        ]
    )


async def test_windows_are_closed_by_keyboard_once_that_is_confirmed(
    console: ConsolePage, running: RunningBridge, worker: Worker
) -> None:
    """Escape cancels."""
    page = console.page
    dialog = page.get_by_role("dialog")
    token = running.token("kim")
    await publish(worker, "kim", 1, message_id="m-3")
    await stored(running, "kim", count=1)
    async with open_windows(running.listening.public_url, [token]) as (window,):
        await console.go("User kim", "users/kim")
        for key in ("Escape", "Enter"):
            await console.press_until(console.button("Close all windows …"))
            await page.keyboard.press("Enter")
            await expect(dialog).to_contain_text("Close the window of this user?")
            if key == "Enter":
                await console.press_until(dialog.get_by_role("button").last)
            await page.keyboard.press(key)
            await expect(dialog).to_have_count(0)
            assert not window.data("bridge:closing") or key == "Enter"

        await expect(page.locator("#says")).to_contain_text("One window was closed.")
        await eventually(lambda: window.data("bridge:closing"))
        assert "'kicked'" in str(window.data("bridge:closing"))
    await expect(console.button("Close all windows …")).to_be_disabled()


async def test_tokens_are_revoked_once_that_is_confirmed(
    console: ConsolePage, running: RunningBridge, worker: Worker
) -> None:
    """The windows are closed, and the page lists the revocation."""
    page = console.page
    dialog = page.get_by_role("dialog")
    await publish(worker, "joe", 1, message_id="m-4")
    await stored(running, "joe", count=1)
    async with open_windows(running.listening.public_url, [running.token("joe")]) as (
        window,
    ):
        await console.go("User joe", "users/joe")
        await console.button("Revoke tokens …").click()
        await dialog.get_by_role("spinbutton").fill("2")
        await dialog.get_by_role("button").last.click()

        await expect(page.locator("#says")).to_contain_text("The tokens are revoked.")
        await eventually(lambda: window.data("bridge:closing"))
        assert "'revoked'" in str(window.data("bridge:closing"))
    revoked = page.get_by_role("table", name="Revoked tokens")
    await expect(revoked.locator("tbody tr")).to_contain_text(["issued before"])
    (made,) = running.bridge.components.inbox.revocations("joe")
    assert made.until_s - made.made_s == pytest.approx(7200, abs=60)


async def test_bridges_that_did_not_answer_are_reported(
    console: ConsolePage, running: RunningBridge, worker: Worker
) -> None:
    """Their windows are not included in the numbers, and were not closed."""
    page = console.page

    async def silent(route: Route) -> None:
        answer = await route.fetch()
        told = await answer.json()
        await route.fulfill(response=answer, json={**told, "bridges": 2, "silent": 1})

    await page.route("**/api/users/lee*", silent)
    await page.route("**/api/users/lee/kick", silent)
    await page.route("**/api/users?*", silent)
    await page.route("**/api/users", silent)
    await publish(worker, "lee", 1, message_id="m-lee")
    await stored(running, "lee", count=1)
    told = "From 2 bridges; 1 did not answer."
    async with open_windows(running.listening.public_url, [running.token("lee")]):
        await console.go("Users", "users")
        await expect(page.get_by_text(told)).to_be_visible()

        await console.go("User lee", "users/lee")
        await expect(page.locator("main").get_by_text(told)).to_be_visible()
        await console.button("Close all windows …").click()
        await page.get_by_role("dialog").get_by_role("button").last.click()
        await expect(page.locator("#says")).to_contain_text(
            f"One window was closed. {told}"
        )
    await page.unroute_all(behavior="wait")


async def test_hostile_names_are_shown_as_text_on_every_page(
    browser: Browser, running: RunningBridge, worker: Worker
) -> None:
    """Names of users and messages are untrusted input, and may be long on a narrow screen."""
    for user in HOSTILE:
        data = {user: user}
        await publish(worker, user, data, message_id=user[:60], event="<b>x</b>")
    for user in HOSTILE:
        await stored(running, user, count=1)
    url = running.listening.operator_url

    async with opened_console(browser, url, size=NARROW) as console:
        page = console.page
        # Times of another day are shown with their date, which makes them longer.
        await page.clock.set_system_time(datetime.now(UTC) + timedelta(days=1))
        await console.go("Users", "users")
        for user in HOSTILE:
            await page.get_by_role("link", name=seen(user), exact=True).click()
            await expect(console.title).to_have_text(f"User {seen(user)}")
            await expect(console.rows.first).to_contain_text("<b>x</b>")
            await console.button("Show the data").click()
            await expect(page.locator("pre")).to_contain_text(seen(user)[:20])
            assert await console.fits(), user
            await page.locator("tbody a").click()
            await expect(console.title).to_have_text("Trace")
            if user != "..":  # its message has the same id, which no browser can say
                await expect(page.locator(".story")).to_contain_text("stored")
            assert await console.fits(), user
            await page.go_back()
            await page.go_back()
        console.assert_clean()
        assert await page.locator("img[src=x], b").count() == 0


async def test_a_trace_shows_the_story_of_a_message(
    console: ConsolePage, running: RunningBridge, worker: Worker
) -> None:
    """It works by keyboard, and reports an unknown id."""
    page = console.page
    await publish(worker, "tom", 1, message_id="order-17")
    await stored(running, "tom", count=1)
    await console.go("Trace", "trace")

    await page.get_by_label("Message id").fill("order-17")
    await page.keyboard.press("Enter")
    await expect(page.locator(".lead")).to_contain_text("waiting")
    await expect(page.locator(".story .stage")).to_contain_text(["taken", "stored"])
    await expect(page.get_by_role("link", name="tom")).to_be_visible()
    await page.get_by_label("Message id").fill("never-was")
    await page.keyboard.press("Enter")
    await expect(page.locator(".lead")).to_be_visible()
    await expect(page.locator(".story")).to_have_count(0)
