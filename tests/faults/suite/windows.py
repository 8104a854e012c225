"""The windows of all users: stock clients in Node and in this process."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import socketio

from tests.faults.suite.history import (
    Acked,
    Connected,
    Disconnected,
    History,
    Opened,
    Received,
    Synced,
)

_DRIVER: Final = Path(__file__).with_name("windows.js")
_CONNECT_TIMEOUT_S: Final = 10.0
_RETRY_AFTER_S: Final = 0.25
# The first connections are paced; a storm of a thousand at once is not the test.
_OPEN_BATCH: Final = 50
_BATCH_PAUSE_S: Final = 0.5
_DISCONNECT_TIMEOUT_S: Final = 3.0
_CLOSE_TIMEOUT_S: Final = 20.0


# The kinds whose pages come without a position, by the last digit of the user's number.
_LONELY_KINDS: Final = {7: "js-discard-polling", 8: "js-discard", 9: "js-fresh"}


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """
    The properties of a window.

    Attributes:
        name: Its unique name.
        user: Its user.
        kind: `js`, `js-polling`, `js-acks` (manual acks, keeps its position over a
            reload), `js-fresh` (manual acks, reloads without a position), `js-discard`
            and `js-discard-polling` (automatic acks; if such a page loses its connection,
            it is discarded and opened again without a position), `js-stock` (reconnects
            with the client's default delays), `python`.

    """

    name: str
    user: str
    kind: str

    @property
    def is_js(self) -> bool:
        """Whether it runs in Node."""
        return self.kind != "python"


def plan_windows(users: Sequence[str]) -> list[WindowPlan]:
    """
    Return two or three windows per user, of all kinds.

    A user whose pages reload without a position has one window only: all windows of a user
    share the delivered mark, so messages acked by one window are not replayed to another.
    """
    plans: list[WindowPlan] = []
    for number, user in enumerate(users):
        if kind := _LONELY_KINDS.get(number % 10):
            plans.append(WindowPlan(f"{user}.{kind[3:]}", user, kind))
            continue
        plans.append(
            WindowPlan(f"{user}.js", user, "js-acks" if number % 5 == 3 else "js")
        )
        plans.append(WindowPlan(f"{user}.py", user, "python"))
        if number % 3 == 0:
            plans.append(WindowPlan(f"{user}.poll", user, "js-polling"))
    return plans


def plan_stock_windows(users: Sequence[str]) -> list[WindowPlan]:
    """Return two windows per user, with the default options of the client."""
    return [
        WindowPlan(f"{user}.{number}", user, "js-stock")
        for user in users
        for number in "12"
    ]


@dataclass
class PythonWindow:
    """A window of python-socketio's client, which sends its last position on connect."""

    plan: WindowPlan
    url: str
    token: str
    history: History
    http: aiohttp.ClientSession
    position: str | None = None
    _awake: asyncio.Event = field(default_factory=asyncio.Event)
    _closed: asyncio.Event = field(default_factory=asyncio.Event)
    _client: socketio.AsyncClient | None = None

    async def run(self) -> None:
        """Stay connected, except between `sleep` and `wake`, until `close`."""
        name = self.plan.name
        self.history.add(
            Opened(self.history.t, name, self.plan.user, keeps_position=False)
        )
        self._awake.set()
        while not self._closed.is_set():
            await self._awake.wait()
            client = self._client = self._make_client()
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    await client.connect(
                        self.url,
                        auth=self._auth,
                        transports=["websocket"],
                        wait_timeout=5,
                    )
            except (socketio.exceptions.ConnectionError, TimeoutError, OSError):
                self._client = None  # a late answer does not count
                await asyncio.sleep(_RETRY_AFTER_S)
            else:
                await _first_of(client.wait(), self._closed.wait())
                self.history.add(Disconnected(self.history.t, name, ""))
            finally:
                self._client = None
                await _disconnect(client)

    async def sleep(self) -> None:
        """Disconnect until `wake`."""
        self._awake.clear()
        client = self._client
        if client is not None:
            await _disconnect(client)

    def wake(self) -> None:
        """Reconnect."""
        self._awake.set()

    def close(self) -> None:
        """Let `run` return. Not by cancellation, which the client may lose."""
        self._closed.set()
        self._awake.set()

    async def reload(self) -> None:
        """Load a new page with the position of the old one."""
        await self.sleep()
        t = self.history.t
        self.history.add(
            Opened(t, self.plan.name, self.plan.user, self.position is not None)
        )
        self.wake()

    def _auth(self) -> dict[str, str]:
        position = {"position": self.position} if self.position else {}
        return {"token": self.token} | position

    def _make_client(self) -> socketio.AsyncClient:
        client = socketio.AsyncClient(
            reconnection=False, http_session=self.http, handle_sigint=False
        )
        name, history = self.plan.name, self.history

        def is_current() -> bool:
            return self._client is client

        async def connected() -> None:
            if is_current():
                history.add(Connected(history.t, name, recovered=None))

        async def received(data: dict[str, Any], position: str) -> None:
            if is_current():
                self.position = position
                history.add(
                    Received(history.t, name, data["u"], data["p"], data["n"], position)
                )

        async def synced(sync: dict[str, Any]) -> None:
            if is_current():
                history.add(
                    Synced(
                        history.t,
                        name,
                        sync["complete"],
                        sync["missed"],
                        sync["reason"],
                    )
                )

        client.on("connect", connected)
        client.on("message", received)
        client.on("bridge:sync", synced)
        return client


async def _disconnect(client: socketio.AsyncClient) -> None:
    with suppress(OSError, aiohttp.ClientError):
        await _first_of(client.disconnect(), asyncio.sleep(_DISCONNECT_TIMEOUT_S))


async def _first_of(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """
    Return when one of `coroutines` has, and cancel the others without waiting for them.

    The client can lose a cancellation that arrives together with data: `wait_for` of
    Python 3.11 does (python/cpython#86296), and so does the write loop of engineio.
    """
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    for task in done:
        if not task.cancelled():  # the client cancels its own tasks when it disconnects
            task.result()


class JsWindows:
    """The windows of one Node process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        history: History,
        users: dict[str, str],
    ) -> None:
        self._process = process
        self._history = history
        self._users = users
        self.refusals: list[object] = []

    async def read(self) -> None:
        """Record the reports of the Node process until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._record(orjson.loads(line))

    def _record(self, facts: list[Any]) -> None:
        t, add = self._history.t, self._history.add
        match facts:
            case ["received", name, user, producer, number, position]:
                add(Received(t, name, user, producer, number, position))
            case ["acked", name, position, is_ok]:
                add(Acked(t, name, position, is_ok))
            case ["opened", name, keeps_position]:
                add(Opened(t, name, self._users[name], keeps_position))
            case ["connected", name, recovered]:
                add(Connected(t, name, recovered))
            case ["disconnected", name, reason]:
                add(Disconnected(t, name, reason))
            case ["synced", name, is_complete, missed, reason]:
                add(Synced(t, name, is_complete, missed, reason))
            case ["refused", _, why]:
                self.refusals.append(why)
            case ["ready"]:
                pass
            case _:
                raise AssertionError(facts)

    def command(self, *words: object) -> None:
        """Send a command to the Node process."""
        assert self._process.stdin is not None
        self._process.stdin.write(orjson.dumps(words) + b"\n")


@dataclass
class Crowd:
    """All windows."""

    plans: list[WindowPlan]
    js: JsWindows
    python: dict[str, PythonWindow]
    asleep: set[str] = field(default_factory=set)

    def of_kinds(self, *kinds: str) -> list[WindowPlan]:
        """Return the windows of these kinds; without kinds, all windows."""
        return [plan for plan in self.plans if not kinds or plan.kind in kinds]

    async def reload(self, plan: WindowPlan) -> None:
        """Reload the page, with or without its position, depending on the kind."""
        if plan.is_js:
            self.js.command("reload", plan.name, plan.kind != "js-fresh")
        else:
            await self.python[plan.name].reload()

    def discard(self, plan: WindowPlan) -> None:
        """Reset the connection of a page, and open it again without a position."""
        self.js.command("discard", plan.name)

    async def sleep(self, plan: WindowPlan) -> None:
        """Disconnect until `wake`."""
        self.asleep.add(plan.name)
        if plan.is_js:
            self.js.command("sleep", plan.name)
        else:
            await self.python[plan.name].sleep()

    def wake(self, plan: WindowPlan) -> None:
        """Reconnect."""
        self.asleep.discard(plan.name)
        if plan.is_js:
            self.js.command("wake", plan.name)
        else:
            self.python[plan.name].wake()


@asynccontextmanager
async def open_crowd(
    plans: list[WindowPlan], url: str, tokens: dict[str, str], history: History
) -> AsyncIterator[Crowd]:
    """Open all windows; close them at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(_DRIVER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    users = {plan.name: plan.user for plan in plans}
    js = JsWindows(process, history, users)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(js.read(), name="node")
            python = {
                plan.name: PythonWindow(plan, url, tokens[plan.user], history, http)
                for plan in plans
                if not plan.is_js
            }
            running = [
                asyncio.create_task(each.run(), name=each.plan.name)
                for each in python.values()
            ]
            for number, plan in enumerate(plans, start=1):
                if plan.is_js:
                    is_discarded = plan.kind.startswith("js-discard")
                    js.command(
                        "open", plan.name, url, *_js_options(plan, tokens), is_discarded
                    )
                if number % _OPEN_BATCH == 0:
                    await asyncio.sleep(_BATCH_PAUSE_S)
            try:
                yield Crowd(plans, js, python)
            finally:
                for window in python.values():
                    window.close()
                await _wait_for_windows(running)
            process.stdin.close()  # type: ignore[union-attr] # it is a pipe
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _wait_for_windows(running: Sequence[asyncio.Task[None]]) -> None:
    """
    Wait for the tasks of windows that were closed.

    Raises:
        TimeoutError: If some do not end. They are left behind.

    """
    done, stuck = await asyncio.wait(running, timeout=_CLOSE_TIMEOUT_S)
    for task in done:
        task.result()
    if stuck:
        names = sorted(task.get_name() for task in stuck)
        raise TimeoutError(f"windows that do not close: {names}")


def _js_options(
    plan: WindowPlan, tokens: dict[str, str]
) -> tuple[dict[str, object], dict[str, object]]:
    auth: dict[str, object] = {"token": tokens[plan.user]}
    options: dict[str, object] = {}
    if plan.kind == "js-stock":
        options |= {"reconnectionDelay": 1000, "reconnectionDelayMax": 5000}
    if plan.kind.endswith("-polling"):
        options["transports"] = ["polling"]
    if plan.kind in ("js-acks", "js-fresh"):
        auth["acks"] = "manual"
        options["transports"] = ["websocket"]
    return options, auth
