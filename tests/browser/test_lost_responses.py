"""Chromium repeats a request by itself when its connection is reset before the response."""

import pytest
from playwright.async_api import Browser

from tests.conftest import eventually
from tests.integration.sockets.cutting_proxy import open_cutting_proxy
from tests.integration.sockets.running_server import open_server
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="session")

_OPEN_PAGE = """async (token) => {
  window.got = [];
  window.connects = 0;
  const socket = (window.socket = io({ auth: { token }, transports: ["polling"] }));
  socket.on("connect", () => (window.connects += 1));
  socket.on("message", (data) => window.got.push(data));
  await new Promise((resolve) => socket.on("bridge:sync", resolve));
}"""
_REFRESH = """(token) => new Promise((resolve) => {
  window.socket.emit("bridge:refresh", token, resolve);
})"""


async def test_lost_responses_are_repeated_and_the_page_notices_nothing(
    browser: Browser,
) -> None:
    """Messages arrive once, and a repeated POST is processed once."""
    async with open_server() as server, open_cutting_proxy(server.port) as proxy:
        page = await browser.new_page()
        await page.goto(f"{proxy.url}/health/live")
        await page.add_script_tag(url=f"{proxy.url}/socket.io/socket.io.js")
        await page.evaluate(_OPEN_PAGE, token())
        for number in range(4):
            proxy.cut_next(b'42["message"', after_bytes=0)
            await server.store("alice", number)
            await page.wait_for_function(f"window.got.includes({number})")
            assert proxy.cuts == number + 1
        await eventually(
            lambda: server.inbox._logs["alice"].delivered == 4  # its next poll
        )

        # The first POST leaves an idle connection: only on such a one is it repeated.
        await page.evaluate(_REFRESH, token())
        proxy.cut_next(b"\r\n\r\nok", after_bytes=0)
        answer = await page.evaluate(_REFRESH, token())
        await eventually(lambda: proxy.cuts == 5)
        await server.store("alice", 4)
        await page.wait_for_function("window.got.includes(4)")

        assert answer["ok"]
        assert await page.evaluate("[window.got, window.connects]") == [
            [0, 1, 2, 3, 4],
            1,
        ]
        await page.close()
