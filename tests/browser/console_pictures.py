"""
Takes the screenshots of the console for the docs: `python -m tests.browser.console_pictures`.

A real bridge runs with real traffic for a minute. This is a program and not a test, so that a
run of the tests does not change files in the repository.
"""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.async_api import Browser, async_playwright, expect

from bridge.core.properties import PERSISTENT, Properties
from tests.browser.console_page import (
    NARROW,
    WIDE,
    ConsolePage,
    Scheme,
    opened_console,
)
from tests.browser.watched_page import launch_chromium
from tests.integration.running import (
    RunningBridge,
    Worker,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

_PICTURES: Final = Path(__file__).parents[2] / "docs"
_TRAFFIC_S: Final = 60.0
_TALLEST: Final = 1000  # longer lists show nothing new
_USERS: Final = ("ann", "bob", "carol", "dave", "eve", "משה", "zoë@example.org")
# The pictures that docs/console.md shows.
_KEPT: Final = frozenset(
    {"overview-light", "overview-narrow", "dead-light", "user-light", "trace-light"}
)
_LOOKS: Final[tuple[tuple[str, Scheme, tuple[int, int]], ...]] = (
    ("light", "light", WIDE),
    ("narrow", "light", NARROW),
)


async def main(folder: Path) -> None:
    """Generate some activity, and save a screenshot of each page."""
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(LocalNode.start())
        settings = settings_for(
            node, "bridge", max_message_bytes="16KiB", presence="true"
        )
        running = await stack.enter_async_context(running_bridge(settings))
        worker = await stack.enter_async_context(open_worker(node, "bridge"))
        tokens = [running.token(user) for user in (*_USERS[:5], "ann")]
        url = running.listening.public_url
        await stack.enter_async_context(open_windows(url, tokens))
        playwright = await stack.enter_async_context(async_playwright())
        browser = await launch_chromium(playwright)
        stack.push_async_callback(browser.close)
        async with asyncio.TaskGroup() as tasks:
            traffic = tasks.create_task(_work(worker), name="traffic")
            for look, scheme, size in _LOOKS:
                tasks.create_task(
                    _take(browser, running, folder, look, scheme=scheme, size=size),
                    name=look,
                )
            await asyncio.sleep(2 * _TRAFFIC_S)
            traffic.cancel()


def compress(path: Path) -> None:
    """Reduce a screenshot to 128 colors, a third of its size."""
    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(128)
    reduced.save(path, optimize=True)


async def _work(worker: Worker) -> None:
    """Publish messages in waves, some of which cannot be delivered."""
    number = 0
    while True:
        for _ in range(random.randint(2, 40)):  # noqa: S311 - for the eye
            number += 1
            await _publish(worker, random.choice(_USERS), number)  # noqa: S311
        await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311
        if number % 7 == 0:
            await _publish(worker, "bob", number, event=b"connect")
        if number % 11 == 0:
            await _publish(worker, "carol", number, body=b'{"order": 17, "state": ')
        if number % 17 == 0:
            await _publish(worker, "dave", number, body=b'"' + b"x" * 20_000 + b'"')


async def _publish(
    worker: Worker,
    user: str,
    number: int,
    *,
    body: bytes = b'{"order": 17, "state": "shipped"}',
    event: bytes = b"order.changed",
) -> None:
    properties = Properties(
        delivery_mode=PERSISTENT, type=event, message_id=f"order-{number}".encode()
    )
    await worker.publish(user, body=body, properties=properties)


async def _take(
    browser: Browser,
    running: RunningBridge,
    folder: Path,
    look: str,
    *,
    scheme: Scheme,
    size: tuple[int, int],
) -> None:
    url = running.listening.operator_url
    opened = opened_console(browser, url, scheme=scheme, size=size, is_signed_in=False)
    async with opened as console:

        async def save(name: str) -> None:
            if f"{name}-{look}" not in _KEPT:
                return
            await console.page.evaluate("scrollTo(0, 0)")
            path = folder / f"console-{name}-{look}.png"
            tall = await console.page.evaluate("document.documentElement.scrollHeight")
            await console.page.screenshot(
                path=path,
                full_page=True,
                clip={
                    "x": 0,
                    "y": 0,
                    "width": size[0],
                    "height": min(tall, _TALLEST),
                },
            )
            await asyncio.to_thread(compress, path)

        await expect(console.title).to_have_text("Sign in")
        await console.sign_in()
        await asyncio.sleep(_TRAFFIC_S)
        for name, show in _PAGES.items():
            await show(console)
            await save(name)


async def _overview(console: ConsolePage) -> None:
    await expect(console.title).to_have_text("Overview")


async def _queues(console: ConsolePage) -> None:
    await console.go("Queues", "queues")
    await expect(console.rows.first).to_be_visible()


async def _dead(console: ConsolePage) -> None:
    await console.go("Dead letters", "dead")
    for row in range(3):
        await console.rows.nth(row).get_by_role("checkbox").check()


async def _discard(console: ConsolePage) -> None:
    await console.button("Discard selected …").click()
    await expect(console.page.get_by_role("dialog")).to_be_visible()


async def _letter(console: ConsolePage) -> None:
    await console.page.keyboard.press("Escape")
    await console.rows.first.get_by_role("link").first.click()
    await console.button("Show the body").click()
    await expect(console.page.locator("pre")).to_be_visible()


async def _users(console: ConsolePage) -> None:
    await console.go("Users", "users")
    await expect(console.rows.first).to_be_visible()


async def _user(console: ConsolePage) -> None:
    await console.page.get_by_role("link", name="ann", exact=True).click()
    await expect(console.rows.nth(4)).to_be_visible()


async def _trace(console: ConsolePage) -> None:
    inbox = console.page.get_by_role("table", name="Messages in the inbox")
    await inbox.get_by_role("link").nth(4).click()
    await expect(console.page.locator(".story")).to_be_visible()


_PAGES: Final[dict[str, Callable[[ConsolePage], Awaitable[None]]]] = {
    "overview": _overview,
    "queues": _queues,
    "dead": _dead,
    "discard": _discard,
    "letter": _letter,
    "users": _users,
    "user": _user,
    "trace": _trace,
}


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else _PICTURES))
