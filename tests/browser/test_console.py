"""The console's shell in a real browser: signing in and out, the overview, the queues."""

import time
from contextlib import AsyncExitStack
from typing import Final

import pytest
from playwright.async_api import Browser, Route, expect
from pydantic import SecretStr

from bridge.demo.private_node import LocalNode
from tests.browser.console_page import NARROW, ConsolePage, opened_console
from tests.conftest import eventually
from tests.integration.running import (
    OPERATOR_TOKEN,
    RunningBridge,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

# What Chromium itself says of an answer that the test asked for.
_REFUSED: Final = r"status of 40[13]|status of 429"
_PAGES: Final = ("Overview", "Queues", "Dead letters", "Users", "Trace")


async def test_a_wrong_token_is_told_and_guessing_has_to_wait(
    browser: Browser, fragile: RunningBridge
) -> None:
    """The right one after a wrong one works; after many, it has to wait as well."""
    throttle = fragile.bridge.components.sign_in.throttle
    url = fragile.listening.operator_url
    async with opened_console(browser, url, is_signed_in=False) as console:
        fault = console.page.locator("#token-fault")
        await console.sign_in("wrong")
        await expect(fault).to_have_text("The token is wrong.")
        await console.sign_in()
        await expect(console.title).to_have_text("Overview")
        await console.button("Sign out").click()

        # As many as make the pause longer than any machine is slow.
        for _ in range(15):
            throttle.note_failure("127.0.0.1", time.monotonic())
        await console.sign_in()
        await expect(fault).to_contain_text("Too many wrong tokens: try again in")

        console.assert_clean(but=_REFUSED)


async def test_the_token_is_kept_nowhere_and_signing_out_ends_it(
    browser: Browser, running: RunningBridge
) -> None:
    """The cookie is no token, is out of scripts' reach, and is worth nothing afterwards."""
    url = running.listening.operator_url
    async with opened_console(browser, url) as console:
        (cookie,) = await console.page.context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert OPERATOR_TOKEN not in str(cookie)
        kept = (
            "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        )
        assert await console.page.evaluate(kept) == '[{},{},""]'
        await console.page.reload()
        await expect(console.title).to_have_text("Overview")

        await console.button("Sign out").click()

        await expect(console.title).to_have_text("Sign in")
        assert await console.page.context.cookies() == []
        header = {"Cookie": f"{cookie['name']}={cookie['value']}"}
        api = f"{url}/api/overview"
        assert (await console.page.request.get(api, headers=header)).status == 401
        console.assert_clean()


async def test_the_overview_lives(
    console: ConsolePage, running: RunningBridge, broker: LocalNode
) -> None:
    """Numbers and charts follow what happens, without a reload."""
    page = console.page
    tile = page.locator(".tile", has_text="Consumed")
    await expect(page.locator(".health .state")).to_have_text("Ready")
    await expect(page.locator(".uplot canvas")).to_have_count(6)
    await expect(page.locator(".health")).to_contain_text("RabbitMQ")

    async with (
        open_worker(broker, running.settings.namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]),
    ):
        for number in range(3):
            await worker.publish("ann", {"n": number})
        await worker.publish("ann", body=b"no JSON")

        await expect(tile).to_contain_text("4 since the start")
        await expect(page.locator(".tile", has_text="Windows")).to_contain_text("1")
        await expect(page.locator("#dead-count")).to_have_text("1")
    messages = page.locator("figure", has_text="Messages")
    drawn = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    assert await messages.locator("canvas").evaluate(drawn) > 20


async def test_pages_that_were_refused_are_named_and_stay_text(
    console: ConsolePage, running: RunningBridge
) -> None:
    """Whoever knocks writes the header; here stands whom BRIDGE_ALLOWED_ORIGINS forgot."""
    strangers = console.page.get_by_role("region", name="Refused origins")
    await expect(strangers).to_be_hidden()

    evil = "https://<img src=x onerror=document.title='broken'>"
    running.bridge.components.sockets.refused_origins.note(evil, time.time())

    await expect(strangers).to_contain_text(evil)
    await expect(strangers.locator("img")).to_have_count(0)
    console.assert_clean()


async def test_what_keeps_the_bridge_from_being_ready_is_told(
    browser: Browser, fragile: RunningBridge
) -> None:
    """The first question of whoever opens this page, answered in words."""
    await fragile.bridge.components.intake.stop_consuming()
    await fragile.bridge.components.intake.settled()

    async with opened_console(browser, fragile.listening.operator_url) as console:
        await expect(console.page.locator("#state")).to_have_text("not ready")
        await expect(console.page.locator(".reasons")).to_have_text(
            "nothing is consumed from the broker"
        )
        console.assert_clean()


async def test_queues_are_told_with_what_they_are_for(
    console: ConsolePage, running: RunningBridge
) -> None:
    """The inbound queue first, as it is looked for first."""
    namespace = running.settings.namespace
    await console.go("Queues", "queues")

    await expect(console.rows).to_have_count(3)
    await expect(console.rows.first).to_contain_text(f"{namespace}.inbound.0")
    await expect(console.rows.first.locator("[data-label=Consumers]")).to_have_text("1")
    await expect(console.rows.last.get_by_role("link")).to_have_text(
        f"{namespace}.dead"
    )


async def test_what_waits_is_the_sum_over_all_shards(console: ConsolePage) -> None:
    """One shard that is empty would hide that the others are not."""

    async def shards(route: Route) -> None:
        answer = await route.fetch()
        told = await answer.json()
        inbound = next(each for each in told["items"] if each["role"] == "inbound")
        told["items"] += [{**inbound, "name": f"x.{n}", "depth": n} for n in (3, 4)]
        await route.fulfill(response=answer, json=told)

    await console.page.route("**/api/queues?limit=200", shards)  # 64 shards, and more

    waiting = console.page.locator(".tile", has_text="Waiting").locator("strong")
    await expect(waiting).to_have_text("7")
    await console.page.unroute_all(behavior="wait")
    console.assert_clean()


async def test_every_page_is_reached_by_keyboard(console: ConsolePage) -> None:
    """The skip link first, then the pages; the title has the focus on each."""
    page = console.page
    await expect(console.title).to_be_focused()
    await page.reload()
    await expect(console.title).to_have_text("Overview")
    await page.keyboard.press("Tab")
    await expect(page.locator(".skip")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()

    for name in _PAGES:
        link = page.locator("#pages").get_by_role("link", name=name)
        await console.press_until(link, "Shift+Tab")
        await page.keyboard.press("Enter")
        await expect(console.title).to_have_text(name)
        await expect(console.title).to_be_focused()
        await expect(link).to_have_attribute("aria-current", "page")


async def test_every_page_fits_a_phone(
    browser: Browser, running: RunningBridge
) -> None:
    """360 pixels: nothing is cut off at the right."""
    url = running.listening.operator_url
    async with opened_console(browser, url, size=NARROW) as console:
        for name in _PAGES:
            await console.page.locator("#pages").get_by_role("link", name=name).click()
            await expect(console.title).to_have_text(name)
            assert await console.fits(), name
        console.assert_clean()


async def test_a_bridge_that_does_not_answer_is_told_until_it_does(
    console: ConsolePage,
) -> None:
    """Nobody reads old numbers as new ones; nobody has to reload the page."""
    banner = console.page.locator("#banner")

    async def cut(route: Route) -> None:
        await route.abort()

    await console.page.route("**/api/**", cut)
    await expect(banner).to_contain_text("The bridge does not answer")
    await expect(console.page.locator("#state")).to_have_text("no answer")
    await console.page.unroute("**/api/**")

    await expect(banner).to_be_hidden()
    await expect(console.page.locator("#state")).to_have_text("ready")
    assert all("ERR_FAILED" in text for text in console.complaints)
    console.complaints.clear()


async def test_after_a_restart_one_signs_in_and_goes_on_where_one_was(
    browser: Browser, broker: LocalNode, namespace: str
) -> None:
    """Sessions live in memory; the page itself is not loaded again, and says why."""
    async with AsyncExitStack() as stack:
        async with running_bridge(settings_for(broker, namespace)) as running:
            url = running.listening.operator_url
            console = await stack.enter_async_context(opened_console(browser, url))
            await console.go("Queues", "queues")
            await console.page.evaluate("window.isStillHere = true")
        await expect(console.page.locator("#banner")).to_contain_text("not answer")

        port = int(url.rpartition(":")[2])
        again = settings_for(broker, namespace, operator_port=port)
        await stack.enter_async_context(running_bridge(again, until_ready=False))

        await expect(console.page.locator("#why")).to_contain_text("restarted")
        await console.sign_in()
        await expect(console.title).to_have_text("Queues")
        assert await console.page.evaluate("window.isStillHere") is True
        await expect(console.rows).to_have_count(3)
        console.assert_clean(but=r"ERR_CONNECTION|ERR_EMPTY|status of (401|503)")


async def test_another_token_ends_the_sessions_of_the_old_one(
    browser: Browser, fragile: RunningBridge
) -> None:
    """Whoever should be out is out at once; who has the new one goes on."""
    another = SecretStr("another")
    new = fragile.settings.model_copy(update={"operator_token": another})
    async with opened_console(browser, fragile.listening.operator_url) as console:
        await fragile.bridge.reload(new)

        await expect(console.page.locator("#why")).to_contain_text("token was changed")
        await console.sign_in("another")
        await expect(console.title).to_have_text("Overview")
        console.assert_clean(but=_REFUSED)


async def test_nothing_is_asked_while_nobody_looks(console: ConsolePage) -> None:
    """Ten forgotten tabs cost nothing; a look brings the newest at once."""
    page = console.page

    def asked_for(name: str) -> int:
        return sum(
            url.partition("?")[0].endswith(f"/api/{name}") for url in console.addresses
        )

    await page.clock.install()
    await page.goto("about:blank")
    console.addresses.clear()  # what was being asked then was cut off
    await page.goto(f"{console.url}/console")
    await expect(console.title).to_have_text("Overview")
    seen = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
    tell = "document.dispatchEvent(new Event('visibilitychange'))"
    await page.evaluate(f"{seen % 'true'}; {tell}")
    # A reading that has begun asks both of its questions.
    await eventually(lambda: asked_for("overview") == asked_for("queues"))
    asked = len(console.addresses)

    await page.clock.run_for(60_000)
    assert len(console.addresses) == asked
    await page.evaluate(f"{seen % 'false'}; {tell}")

    await eventually(lambda: len(console.addresses) > asked)
