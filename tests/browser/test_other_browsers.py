"""A smoke test of demo page, own page and console in Firefox and in WebKitGTK."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from aiohttp import web

from tests.browser.demo_process import DemoProcess
from tests.browser.other_browsers import (
    RemoteBrowser,
    expect_true,
    open_firefox,
    open_webkit,
)
from tests.integration.running import (
    OPERATOR_TOKEN,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

pytestmark = pytest.mark.asyncio(loop_scope="session")

_BROWSERS: Final = {"firefox": open_firefox, "webkit": open_webkit}
_README: Final = Path(__file__).parents[2] / "README.md"
_PAGES: Final = ("Queues", "Dead letters", "Users", "Trace", "Overview")
_WINDOW: Final = 'document.querySelector("iframe").contentDocument'
_STATE: Final = f'{_WINDOW}.querySelector("#state").dataset.state'
_DRAWN: Final = {
    "firefox": 'document.querySelectorAll(".uplot canvas").length === 6',
    # The chart library rejects the language "C".
    "webkit": 'document.body.innerText.split("cannot be drawn").length === 7',
}


@pytest_asyncio.fixture(params=_BROWSERS, scope="module", loop_scope="session")
async def remote(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[str, RemoteBrowser]]:
    """Return each browser with its name."""
    folder = tmp_path_factory.mktemp(request.param)
    async with _BROWSERS[request.param](folder) as browser:
        yield request.param, browser


async def test_the_demo_page_works(
    remote: tuple[str, RemoteBrowser], demo: DemoProcess, namespace: str
) -> None:
    """A window is live, recovers what it missed, and labels stand beside their choices."""
    _, browser = remote
    await demo.consumes()
    await browser.open(f"{demo.url}/")
    await expect_true(browser, f'{_STATE} === "live"')
    tops = [
        await browser.evaluate(
            f"document.querySelector('.choice {element}').getBoundingClientRect().top"
        )
        for element in ("span", "label")
    ]
    assert abs(tops[0] - tops[1]) < 5

    await browser.evaluate(f'{_WINDOW}.querySelector("#cut").click()')
    await expect_true(browser, f'{_STATE} === "cut"')
    await browser.evaluate(
        f"""(() => {{
          const form = document.querySelector("#publish");
          form.elements.data.value = "{namespace}";
          form.requestSubmit();
        }})()"""
    )

    await expect_true(browser, f'{_STATE} === "live"')
    await expect_true(browser, f'{_WINDOW}.body.innerText.includes("{namespace}")')


async def test_a_page_of_another_origin_works(
    remote: tuple[str, RemoteBrowser], broker: LocalNode, namespace: str
) -> None:
    """The lines of README receive a message, and after a reconnect what they missed."""
    _, browser = remote
    page = web.Application()
    runner = web.AppRunner(page)
    # Routes cannot be added after the start, but the page needs both URLs.
    html: list[str] = []

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text=html[0], content_type="text/html")

    page.router.add_get("/", serve)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    origin = f"http://localhost:{runner.addresses[0][1]}"
    settings = settings_for(broker, namespace, allowed_origins=[origin])
    async with (
        running_bridge(settings) as running,
        open_worker(broker, namespace) as worker,
    ):
        (recipe,) = re.findall(
            r"## Receive in a page\n\n```html\n(.*?)```", _README.read_text(), re.DOTALL
        )
        recipe = recipe.replace(
            "https://push.example.org", running.listening.public_url
        )
        own = f"var token = '{running.token('ann')}'; var got = []; var show = (data) => got.push(data);"
        html.append(f"<!doctype html><script>{own}</script>{recipe}")
        await browser.open(f"{origin}/")
        await expect_true(browser, "socket.connected")
        await worker.publish("ann", "one")
        await expect_true(browser, "got.length === 1")

        await browser.evaluate("void socket.io.engine.close()")
        await worker.publish("ann", "two")

        await expect_true(browser, "got.length === 2")
        assert await browser.evaluate("got.join()") == "one,two"
        await browser.open("about:blank")
    await runner.cleanup()


async def test_the_console_works(
    remote: tuple[str, RemoteBrowser], broker: LocalNode, namespace: str
) -> None:
    """An operator signs in; every page is shown, and the charts or a sentence instead."""
    name, browser = remote
    async with running_bridge(settings_for(broker, namespace)) as running:
        await browser.open(f"{running.listening.operator_url}/console")
        await expect_true(browser, 'document.querySelector("form.sign-in")')
        await browser.evaluate(
            f"""(() => {{
              const form = document.querySelector("form");
              form.elements.token.value = "{OPERATOR_TOKEN}";
              form.requestSubmit();
            }})()"""
        )
        await expect_true(
            browser, 'document.querySelector("#state").innerText === "ready"'
        )
        for page in _PAGES:
            link = f'[...document.querySelectorAll("nav a")].find((a) => a.text.startsWith("{page}"))'
            await browser.evaluate(f"{link}.click()")
            await expect_true(
                browser, f'document.querySelector("h1").innerText === "{page}"'
            )
        await expect_true(browser, _DRAWN[name])
        await browser.open("about:blank")
