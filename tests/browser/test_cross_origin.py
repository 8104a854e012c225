"""Pages of another origin in Chromium, which enforces CORS."""

import pytest
from playwright.async_api import Browser

from bridge.core.origins import OriginRules
from tests.integration.sockets.running_server import Plan, open_server
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="session")

_CONNECT = """([url, token, transport]) => new Promise((resolve) => {
  const socket = io(url, {
    auth: { token },
    transports: [transport],
    extraHeaders: transport === "polling" ? { "X-Tenant": "a", "X-Trace-Id": "1" } : {},
    withCredentials: true,
    reconnection: false,
    forceNew: true,
  });
  socket.on("connect", () => { resolve("connected"); socket.close(); });
  socket.on("connect_error", (error) => {
    resolve(error.data ? error.data.code : error.message);
  });
})"""


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_a_listed_origin_connects_with_headers_of_its_own(
    browser: Browser, transport: str
) -> None:
    """The preflight allows the headers that the page asks for."""
    async with open_server() as site:
        listed = f"http://*.pages.localhost:{site.port}"
        plan = Plan(origins=OriginRules(allowed=frozenset({listed})))
        async with open_server(plan) as server:
            answers = {}
            for host in ("app.pages.localhost", "a.b.pages.localhost", "localhost"):
                page = await browser.new_page()
                await page.goto(f"http://{host}:{site.port}/health/live")
                await page.add_script_tag(url=f"{server.url}/socket.io/socket.io.js")
                answers[host] = await page.evaluate(
                    _CONNECT, [server.url, token(), transport]
                )
                await page.close()

    # With its own headers, a request of another origin ends at the preflight.
    refused = "xhr poll error" if transport == "polling" else "origin_not_allowed"
    assert answers == {
        "app.pages.localhost": "connected",
        "a.b.pages.localhost": refused,
        "localhost": refused,
    }
