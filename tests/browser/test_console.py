"""The console in a real browser: signing in and out, the overview, the queues."""

import time
from contextlib import AsyncExitStack
from typing import Final

import pytest
from playwright.async_api import Browser, Route, expect
from pydantic import SecretStr

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
from tests.local_node import LocalNode

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Chromium logs this for an error that the test expects.
_REFUSED: Final = r"status of 40[13]|status of 429"
# What a page of another origin may try; it can read no answer.
_ATTACK: Final = """async (url) => {
  const own = { "X-Bridge-Console": "1" };
  const tries = [
    ["/api/users", {}],
    ["/api/users/ann/kick", { method: "POST", mode: "no-cors" }],
    ["/api/publish", { method: "POST", mode: "no-cors", body: '{"user":"ann","data":1}' }],
    ["/api/users/ann/kick", { method: "POST", headers: own }],
    ["/console/session", { method: "DELETE", headers: own }],
    ["/console/session", { method: "POST", mode: "no-cors", body: '{"token":"x"}' }],
  ];
  return Promise.all(tries.map(([path, options]) =>
    fetch(url + path, { credentials: "include", ...options })
      .then((answer) => answer.type, () => "refused")));
}"""
_PAGES: Final = ("Overview", "Queues", "Dead letters", "Users", "Trace")


async def test_wrong_tokens_are_reported_and_lead_to_pauses(
    browser: Browser, fragile: RunningBridge
) -> None:
    """The right token works after a wrong one; after many, it has to wait too."""
    throttle = fragile.bridge.components.key_attempts.guesses
    url = fragile.listening.operator_url
    async with opened_console(browser, url, is_signed_in=False) as console:
        fault = console.page.locator("#token-fault")
        await console.sign_in("wrong")
        await expect(fault).to_have_text("The token is wrong.")
        await console.sign_in()
        await expect(console.title).to_have_text("Overview")
        await console.button("Sign out").click()

        # So many that the pause is long enough even on a slow machine.
        for _ in range(15):
            throttle.note_failure("127.0.0.1", time.monotonic())
        await console.sign_in()
        await expect(fault).to_contain_text("Too many wrong keys: try again in")

        console.assert_clean(but=_REFUSED)


async def test_the_token_is_not_stored_and_signing_out_ends_the_session(
    browser: Browser, running: RunningBridge
) -> None:
    """The cookie contains no token, is hidden from scripts, and is invalid afterwards."""
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


async def test_a_page_of_another_port_can_do_nothing_with_the_session(
    browser: Browser, running: RunningBridge
) -> None:
    """Another port is the same site for browsers, so they send the cookie along."""
    url = running.listening.operator_url
    async with (
        opened_console(browser, url) as console,
        open_windows(running.listening.public_url, [running.token("ann")]),
    ):
        other = await console.page.context.new_page()
        await other.route(
            "http://127.0.0.1:4999/",
            lambda route: route.fulfill(body="<p>another page"),
        )
        await other.goto("http://127.0.0.1:4999/")
        answers = await other.evaluate(_ATTACK, url)
        await other.close()

        signed_in = await console.page.evaluate(
            "fetch('/console/session').then((answer) => answer.json())"
        )
        assert set(answers) <= {"refused", "opaque"}  # it can read none of them
        assert signed_in == {"signed_in": True}
        assert len(running.bridge.components.sockets.rooms) == 1
        assert not running.sample("bridge_windows_closed_total", code="kicked")


async def test_the_overview_is_updated(
    console: ConsolePage, running: RunningBridge, broker: LocalNode
) -> None:
    """Numbers and charts change without a reload."""
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


async def test_a_chart_that_cannot_be_drawn_is_replaced_by_a_sentence(
    browser: Browser, running: RunningBridge
) -> None:
    """Under the locale C, WebKitGTK reports the language C, which the library rejects."""
    url = running.listening.operator_url
    async with opened_console(browser, url, is_signed_in=False) as console:
        language = "Object.defineProperty(navigator, 'language', {get: () => 'C'})"
        await console.page.add_init_script(language)
        await console.page.reload()
        await console.sign_in()

        charts = console.page.locator("figure")
        await expect(charts.get_by_text("cannot be drawn")).to_have_count(6)
        await expect(charts.last).to_contain_text("windows 0")
        for name in _PAGES:
            await console.page.locator("#pages").get_by_role("link", name=name).click()
            await expect(console.title).to_have_text(name)
        await eventually(lambda: bool(console.errors))
        console.assert_clean(but="language tag|uPlot")


async def test_a_console_that_cannot_start_is_explained(
    browser: Browser, running: RunningBridge
) -> None:
    """A blank page does not say whether the bridge or the browser is at fault."""
    url = running.listening.operator_url
    async with opened_console(browser, url, is_signed_in=False) as console:
        await console.page.route("**/console/app.js", lambda route: route.abort())
        await console.page.reload()

        told = console.page.get_by_role("main").get_by_text("needs JavaScript")
        await expect(told).to_be_visible()


async def test_refused_origins_are_listed_as_text(
    console: ConsolePage, running: RunningBridge
) -> None:
    """Origins can be forged. The list shows what is missing in BRIDGE_ALLOWED_ORIGINS."""
    strangers = console.page.get_by_role("region", name="Refused origins")
    await expect(strangers).to_be_hidden()

    evil = "https://<img src=x onerror=document.title='broken'>"
    running.bridge.components.sockets.refused_origins.note(evil, time.time())

    await expect(strangers).to_contain_text(evil)
    await expect(strangers.locator("img")).to_have_count(0)
    padding = "element => parseFloat(getComputedStyle(element).paddingLeft)"
    assert await strangers.evaluate(padding) > 0
    console.assert_clean()


async def test_the_reasons_for_not_being_ready_are_shown(
    browser: Browser, fragile: RunningBridge
) -> None:
    """Operators open the page for this question first."""
    await fragile.bridge.components.intake.stop_consuming()
    await fragile.bridge.components.intake.settled()

    async with opened_console(browser, fragile.listening.operator_url) as console:
        await expect(console.page.locator("#state")).to_have_text("not ready")
        await expect(console.page.locator(".reasons")).to_have_text(
            "nothing is consumed from the broker"
        )
        console.assert_clean()


async def test_queues_are_listed_with_their_roles(
    console: ConsolePage, running: RunningBridge
) -> None:
    """The inbound queue comes first."""
    namespace = running.settings.namespace
    await console.go("Queues", "queues")

    await expect(console.rows).to_have_count(6)
    await expect(console.rows.first).to_contain_text(f"{namespace}.inbound.0")
    await expect(console.rows.first.locator("[data-label=Consumers]")).to_have_text("1")
    await expect(console.rows.last.get_by_role("link")).to_have_text(
        f"{namespace}.dead"
    )


async def test_waiting_messages_are_summed_over_all_shards(
    console: ConsolePage,
) -> None:
    """An empty shard must not hide messages in the others."""

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


async def test_every_page_is_reachable_by_keyboard(console: ConsolePage) -> None:
    """The skip link comes first, then the pages; on each the title has the focus."""
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
    """At 360 pixels nothing is cut off on the right."""
    url = running.listening.operator_url
    async with opened_console(browser, url, size=NARROW) as console:
        for name in _PAGES:
            await console.page.locator("#pages").get_by_role("link", name=name).click()
            await expect(console.title).to_have_text(name)
            assert await console.fits(), name
        console.assert_clean()


async def test_a_bridge_that_does_not_answer_is_reported_until_it_does(
    console: ConsolePage,
) -> None:
    """Old numbers are marked, and the page recovers without a reload."""
    banner = console.page.locator("#banner")

    async def cut(route: Route) -> None:
        await route.abort()

    await console.page.route("**/api/**", cut)
    await expect(banner).to_contain_text("The bridge does not answer")
    await expect(console.page.locator("#state")).to_have_text("no answer")
    await console.page.unroute("**/api/**")

    await expect(banner).to_be_hidden()
    await expect(console.page.locator("#state")).to_have_text("ready")
    assert all("ERR_FAILED" in text for text in console.errors)
    console.errors.clear()


async def test_after_a_restart_a_sign_in_returns_to_the_same_page(
    browser: Browser, broker: LocalNode, namespace: str
) -> None:
    """Sessions are in memory. The page explains it and is not reloaded."""
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
        await expect(console.rows).to_have_count(6)
        console.assert_clean(but=r"ERR_CONNECTION|ERR_EMPTY|status of (401|503)")


async def test_a_new_token_ends_the_sessions_of_the_old_one(
    browser: Browser, fragile: RunningBridge
) -> None:
    """Operators without the new token lose access at once."""
    another = SecretStr("the-next-operator-token")
    new = fragile.settings.model_copy(update={"operator_token": another})
    async with opened_console(browser, fragile.listening.operator_url) as console:
        await fragile.bridge.reload(new)

        await expect(console.page.locator("#why")).to_contain_text("token was changed")
        await console.sign_in("the-next-operator-token")
        await expect(console.title).to_have_text("Overview")
        console.assert_clean(but=_REFUSED)


async def test_a_hidden_page_sends_no_requests(console: ConsolePage) -> None:
    """Forgotten tabs cost nothing; a visible one updates at once."""
    page = console.page

    def asked_for(name: str) -> int:
        return sum(
            url.partition("?")[0].endswith(f"/api/{name}")
            for url in console.requested_urls
        )

    await page.clock.install()
    await page.goto("about:blank")
    console.requested_urls.clear()  # requests in flight were aborted
    await page.goto(f"{console.url}/console")
    await expect(console.title).to_have_text("Overview")
    seen = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
    tell = "document.dispatchEvent(new Event('visibilitychange'))"
    await page.evaluate(f"{seen % 'true'}; {tell}")
    # An update that has begun sends both of its requests.
    await eventually(lambda: asked_for("overview") == asked_for("queues"))
    asked = len(console.requested_urls)

    await page.clock.run_for(60_000)
    assert len(console.requested_urls) == asked
    await page.evaluate(f"{seen % 'false'}; {tell}")

    await eventually(lambda: len(console.requested_urls) > asked)
