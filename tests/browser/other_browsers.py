"""
Firefox and WebKitGTK of Debian, controlled by their own remote protocols.

Playwright needs builds of its own of these two. Here they can open a page and evaluate
JavaScript in it, which is enough for a smoke test.
"""

import asyncio
import os
import re
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp

from tests.conftest import SLOW_FACTOR, eventually
from tests.faults.suite.proxy import free_ports

_START_TIMEOUT_S: Final = 30.0 * SLOW_FACTOR
_CALL_TIMEOUT_S: Final = 15.0 * SLOW_FACTOR
_END_TIMEOUT_S: Final = 5.0 * SLOW_FACTOR


class RemoteBrowser(Protocol):
    """A browser with one tab."""

    async def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression: a string, a number or a bool."""


class FirefoxTab:
    """Implements RemoteBrowser with WebDriver BiDi."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket
        self._numbers = count(1)
        self._context = ""

    async def start(self) -> None:
        """Start a session."""
        await self._call("session.new", capabilities={})
        tree = await self._call("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]

    async def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        method = "browsingContext.navigate"
        await self._call(method, context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression: a string, a number or a bool."""
        answer = await self._call(
            "script.evaluate",
            expression=expression,
            target={"context": self._context},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer["exceptionDetails"]["text"]
        return answer["result"].get("value")

    async def _call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            command = {"id": number, "method": method, "params": params}
            await self._websocket.send_json(command)
            answer: dict[str, Any] = {}
            while answer.get("id") != number:
                answer = await self._websocket.receive_json()
        assert answer["type"] == "success", answer
        return answer["result"]


class WebKitTab:
    """Implements RemoteBrowser with WebDriver."""

    def __init__(self, session: aiohttp.ClientSession, path: str) -> None:
        self._session = session
        self._path = path

    async def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        await webdriver(self._session, f"{self._path}/url", {"url": url})

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression: a string, a number or a bool."""
        body = {"script": f"return {expression}", "args": []}
        return await webdriver(self._session, f"{self._path}/execute/sync", body)


async def webdriver(session: aiohttp.ClientSession, path: str, body: Any) -> Any:
    """Send a WebDriver command, and return the value of its answer."""
    async with (
        asyncio.timeout(_CALL_TIMEOUT_S),
        session.post(path, json=body) as response,
    ):
        answer = await response.json(content_type=None)
        assert response.status == 200, answer
        return answer["value"]


async def expect_true(browser: RemoteBrowser, expression: str) -> None:
    """Wait until a JavaScript expression is true; an error counts as false."""
    script = f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
    await eventually(lambda: browser.evaluate(script), within_s=20)


@asynccontextmanager
async def open_firefox(folder: Path) -> AsyncIterator[RemoteBrowser]:
    """Start a headless Firefox with a new profile in `folder`."""
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    assert program, "Firefox is missing: apt-get install firefox-esr"
    flags = ("--headless", "--no-remote", "--profile", str(folder))
    remote = ("--remote-debugging-port", "0")
    async with _process(folder, program, *flags, *remote, stderr=PIPE) as firefox:
        assert firefox.stderr
        async with asyncio.timeout(_START_TIMEOUT_S):
            url = await _first_match(firefox.stderr, r"BiDi listening on (ws://\S+)")
        async with (
            asyncio.TaskGroup() as tasks,
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{url}/session", max_msg_size=0) as websocket,
        ):
            # A pipe that is not read would fill up and block Firefox.
            reading = tasks.create_task(firefox.stderr.read(), name="log of Firefox")
            tab = FirefoxTab(websocket)
            await tab.start()
            yield tab
            reading.cancel()


@asynccontextmanager
async def open_webkit(folder: Path) -> AsyncIterator[RemoteBrowser]:
    """
    Start WebKitGTK's MiniBrowser on a virtual screen.

    Its locale is C.UTF-8, under which `navigator.language` is "C": no valid language tag.
    """
    (port,) = free_ports(1)
    screen = ("-displayfd", "1", "-screen", "0", "1280x900x24", "-nolisten", "tcp")
    async with _process(folder, "Xvfb", *screen, stdout=PIPE) as xvfb:
        assert xvfb.stdout
        async with asyncio.timeout(_START_TIMEOUT_S):
            display = await _first_match(xvfb.stdout, r"(\d+)")
        locale = {"LC_ALL": "C.UTF-8"}
        environment = {"DISPLAY": f":{display}", "GDK_BACKEND": "x11", **locale}
        driver = ("WebKitWebDriver", "--host=127.0.0.1", f"--port={port}")
        async with (
            _process(folder, *driver, environment=environment),
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
        ):
            await eventually(lambda: _answers(session))
            wanted: Any = {"capabilities": {"alwaysMatch": {}}}
            started = await webdriver(session, "/session", wanted)
            path = f"/session/{started['sessionId']}"
            yield WebKitTab(session, path)
            async with asyncio.timeout(_END_TIMEOUT_S), session.delete(path):
                pass


async def _answers(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/status") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def _first_match(stream: asyncio.StreamReader, pattern: str) -> str:
    lines = []
    while line := (await stream.readline()).decode():
        if match := re.search(pattern, line):
            return match[1]
        lines.append(line)
    message = f"the program ended: {''.join(lines)}"
    raise AssertionError(message)


@asynccontextmanager
async def _process(
    folder: Path,
    *command: str,
    environment: Mapping[str, str] | None = None,
    stdout: int = DEVNULL,
    stderr: int = DEVNULL,
) -> AsyncIterator[Process]:
    """Run a program whose files are in `folder`; end it and its children."""
    own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **own, **(environment or {})},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
