"""The console in Chromium, with its errors and its requests recorded."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, expect

from tests.conftest import SLOW_FACTOR
from tests.integration.running import OPERATOR_TOKEN

_WITHIN_MS: Final = 15_000 * SLOW_FACTOR
WIDE: Final = (1280, 860)
NARROW: Final = (360, 740)

Scheme = Literal["light", "dark"]


@dataclass
class ConsolePage:
    """
    The console in an open page.

    Attributes:
        page: The page of Playwright.
        url: The URL of the operator port, without a trailing slash.
        errors: Errors and warnings in the browser's log, script errors, dialogs.
        requested_urls: The URLs of all requests.

    """

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    requested_urls: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Start recording."""
        context = self.page.context
        context.on("request", lambda request: self.requested_urls.append(request.url))
        context.on("console", self._on_console)
        context.on("weberror", lambda fault: self.errors.append(str(fault.error)))
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(message.text)

    async def sign_in(self, token: str = OPERATOR_TOKEN) -> None:
        """Type a token and press Enter; the field has the focus."""
        await expect(self.page.get_by_label("Operator token")).to_be_focused()
        await self.page.keyboard.type(token)
        await self.page.keyboard.press("Enter")

    async def go(self, name: str, path: str = "") -> None:
        """Open a page by its URL, and wait for its title."""
        await self.page.goto(f"{self.url}/console#/{path}")
        await expect(self.title).to_have_text(name)

    async def press_until(self, target: Locator, key: str = "Tab") -> None:
        """Press a key until `target` has the focus; fail if it cannot be reached."""
        for _ in range(80):
            if await target.evaluate("element => element === document.activeElement"):
                return
            await self.page.keyboard.press(key)
        message = f"{key} does not lead to {target}"
        raise AssertionError(message)

    @property
    def title(self) -> Locator:
        """The title of the page that is shown."""
        return self.page.get_by_role("heading", level=1)

    @property
    def rows(self) -> Locator:
        """The rows of the table, without the header."""
        return self.page.locator("tbody tr")

    def button(self, name: str) -> Locator:
        """Return a button by its full name."""
        return self.page.get_by_role("button", name=name, exact=True)

    async def fits(self) -> bool:
        """Whether nothing is cut off on the right."""
        wide = "document.documentElement.scrollWidth <= innerWidth"
        return bool(await self.page.evaluate(wide))

    def assert_clean(self, *, but: str = "") -> None:
        """Check that there were no errors (except for `but`) and no requests to other hosts."""
        told = [text for text in self.errors if not (but and re.search(but, text))]
        assert told == []
        own = f"{self.url}/"
        assert [url for url in self.requested_urls if not url.startswith(own)] == []


@asynccontextmanager
async def opened_console(
    browser: Browser,
    url: str,
    *,
    scheme: Scheme = "light",
    size: tuple[int, int] = WIDE,
    is_signed_in: bool = True,
) -> AsyncIterator[ConsolePage]:
    """Open the console in a new browser context, and sign in if requested."""
    options: dict[str, Any] = {"color_scheme": scheme, "locale": "en-GB"}
    viewport: Any = {"width": size[0], "height": size[1]}
    context = await browser.new_context(viewport=viewport, **options)
    context.set_default_timeout(_WITHIN_MS)
    console = ConsolePage(await context.new_page(), url)
    console.watch()
    await console.page.goto(f"{url}/console")
    if is_signed_in:
        await console.sign_in()
        await expect(console.title).to_have_text("Overview")
    try:
        yield console
    finally:
        await context.close()
