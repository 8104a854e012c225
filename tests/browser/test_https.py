"""Chromium on a page over https, whose bridge has a certificate of its own."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser

from bridge.core.origins import OriginRules
from tests.integration.sockets.running_server import Plan, open_server
from tests.integration.sockets.security import new_security, using
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="session")

_RECEIVE = """async ([token, transports]) => {
  const { io } = await import("/socket.io/socket.io.esm.min.js");
  return await new Promise((resolve) => {
    const socket = io({ auth: { token }, transports, reconnection: false });
    socket.on("message", (data) => {
      resolve([data, socket.io.engine.transport.name]);
      socket.close();
    });
    socket.on("connect_error", (error) => resolve([error.message, ""]));
  });
}"""


@pytest.mark.parametrize("transports", [["polling"], ["websocket"]], ids="+".join)
async def test_a_page_over_https_receives_its_messages(
    browser: Browser, tmp_path: Path, transports: list[str]
) -> None:
    """A browser allows no plain WebSocket there. The page imports the client as a module."""
    security, _ = await asyncio.to_thread(new_security, tmp_path)
    plan = Plan(origins=OriginRules(own_scheme="https"))
    with using(security):
        async with open_server(plan) as server:
            # The authority of the test is in no store of the system.
            context = await browser.new_context(ignore_https_errors=True)
            page = await context.new_page()
            await page.goto(f"{server.url}/health/live")
            await server.store("alice", "hello")
            answer = await page.evaluate(_RECEIVE, [token(), transports])
            await context.close()

    assert answer == ["hello", transports[0]]
