"""A page in Chromium whose errors, requests and WebSocket frames are recorded."""

import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    FrameLocator,
    Page,
    Playwright,
    WebSocket,
    expect,
)

from tests.conftest import SLOW_FACTOR, eventually

_TIMEOUT_MS: Final = 15_000 * SLOW_FACTOR
_FLAGS: Final = (
    "--no-sandbox",  # Chromium's sandbox does not work for root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


async def launch_chromium(playwright: Playwright) -> Browser:
    """Start the Chromium of the system, because playwright's own is not installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "Chromium is missing: apt-get install chromium"
    expect.set_options(timeout=_TIMEOUT_MS)
    # Otherwise its settings and caches would stay in the home folder of the developer.
    home = {"HOME": tempfile.gettempdir()}
    return await playwright.chromium.launch(
        executable_path=program, args=list(_FLAGS), env={**os.environ, **home}
    )


@dataclass
class WatchedPage:
    """
    An open demo page.

    Attributes:
        page: Playwright's page.
        url: The URL of the demo, without the final slash.
        browser_errors: Errors of the browser's console and of scripts.
        addresses: All requested URLs.
        sent: All WebSocket frames that windows sent.
        sockets: The number of opened WebSockets.

    """

    page: Page
    url: str
    browser_errors: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    sockets: int = 0

    def watch(self, context: BrowserContext) -> None:
        """Record from now on."""
        context.on("request", lambda request: self.addresses.append(request.url))
        context.on("console", self._on_console)
        context.on(
            "weberror", lambda fault: self.browser_errors.append(str(fault.error))
        )
        self.page.on("websocket", self._on_websocket)
        self.page.on(
            "dialog", lambda dialog: self.browser_errors.append(dialog.message)
        )

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.browser_errors.append(message.text)

    def _on_websocket(self, websocket: WebSocket) -> None:
        self.sockets += 1
        self.addresses.append(websocket.url)
        websocket.on("framesent", lambda frame: self.sent.append(str(frame)))

    def window(self, user: str, number: int = 1) -> FrameLocator:
        """Return a window of `user`."""
        return self.page.frame_locator(f"iframe[title='{user}, window {number}']")

    async def expect_state(self, user: str, state: str, *, number: int = 1) -> None:
        """Wait until a window shows `state`: live, cut, closed …"""
        shown = self.window(user, number).locator("#state")
        await expect(shown).to_have_attribute("data-state", state)

    async def expect_live(self) -> None:
        """Wait until the first windows of both users are live."""
        await self.expect_state("ann", "live")
        await self.expect_state("bob", "live")

    async def open_another_window(self, user: str) -> None:
        """Open the second window of `user`, and wait until it is live."""
        await self.page.get_by_text(f"Open another window of {user}").click()
        await self.expect_state(user, "live", number=2)

    async def publish(
        self,
        text: str,
        *,
        user: str = "ann",
        event: str = "",
        kind: str = "text",
        count: int = 1,
    ) -> None:
        """Publish with the form, and wait for the confirm."""
        form = self.page.locator("#publish")
        await form.get_by_role("radio", name=user).check()
        await form.get_by_role("radio", name=kind).check()
        await form.get_by_label("Event").fill(event)
        await form.get_by_label("Data", exact=True).fill(text)
        await form.get_by_label("How many").fill(str(count))
        await form.get_by_role("button").click()
        result = self.page.locator("#result")
        await expect(result).to_have_text(re.compile(f"to {user}, (all )?confirmed"))

    async def expect_message(self, user: str, text: str, *, number: int = 1) -> None:
        """Wait until a window shows a message."""
        await expect(self.window(user, number).get_by_text(text)).to_be_visible()

    async def texts(self, user: str, containing: str, *, number: int = 1) -> list[str]:
        """Return the messages that a window shows, oldest first."""
        rows = self.window(user, number).locator(".data", has_text=containing)
        return (await rows.all_inner_texts())[::-1]

    async def wait_for_ack(self, position: str) -> None:
        """Wait until a window has sent an ack for `position` or a later one of its user."""
        offset = int(position.rpartition("-")[2])
        await eventually(lambda: any(acked >= offset for acked in self.acked_offsets))

    @property
    def acked_offsets(self) -> list[int]:
        """The offsets of all acks."""
        found = (re.search(r'\["ack","\w+-(\d+)"\]', frame) for frame in self.sent)
        return [int(match[1]) for match in found if match]

    def assert_clean(self) -> None:
        """Check that there were no errors and no requests to other servers."""
        assert self.browser_errors == []
        own = (f"{self.url}/", f"{self.url.replace('http', 'ws', 1)}/")
        assert [url for url in self.addresses if not url.startswith(own)] == []


@asynccontextmanager
async def opened_page(browser: Browser, url: str) -> AsyncIterator[WatchedPage]:
    """Open the demo page as a new visitor, and wait until both users are live."""
    # A painted frame costs processor time, and each new message is animated for seconds.
    context = await browser.new_context(
        viewport={"width": 1280, "height": 860}, reduced_motion="reduce"
    )
    context.set_default_timeout(_TIMEOUT_MS)
    watched = WatchedPage(await context.new_page(), url)
    watched.watch(context)
    await watched.page.goto(f"{url}/")
    await watched.expect_live()
    try:
        yield watched
    finally:
        await context.close()
