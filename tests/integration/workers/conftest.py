"""`bridge run --workers N` as a program, and stock clients that connect to it."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson
import pytest

from bridge.auth.issuing import signed_token
from bridge.core.worker_slot import WorkerSlot
from bridge.settings.load import load_settings
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.running import OPERATOR_TOKEN, SECRET
from tests.local_node import LocalNode
from tests.processes import family_of, is_alive
from tests.redis_server import RedisServer

LIMIT_S = 60 * SLOW_FACTOR
PAGES = Path(__file__).with_name("windows.js")
_OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
NODE_MODULES = Path(__file__).parents[2] / "node_modules"


@pytest.fixture(scope="package")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for these tests, which use different namespaces."""
    folder = tmp_path_factory.mktemp("redis")
    with RedisServer.started(folder, is_durable=False) as server:
        yield server


def token_for(user: str) -> str:
    """Sign a token that these bridges accept."""
    return signed_token(load_settings({"jwt_secret": SECRET}), user, ttl_s=300)


def environment(**settings: str) -> dict[str, str]:
    """Return an environment with these BRIDGE_* settings and no others."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("BRIDGE_")}
    given = {f"BRIDGE_{name.upper()}": value for name, value in settings.items()}
    return kept | given | {"COLUMNS": "200", "NO_COLOR": "1"}


@dataclass
class Program:
    """A supervisor and its workers, all of which listen."""

    process: Process
    public_url: str
    operator_url: str
    log: list[dict[str, object]] = field(default_factory=list, repr=False)

    async def read_log(self) -> None:
        """Collect the log until the program ends."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(
                orjson.loads(line)
                if line.startswith(b"{")
                else {"event": line.decode().rstrip()}
            )

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return [pid for pid in family_of(self.process.pid)[1:] if is_alive(pid)]

    def slots(self) -> dict[int, WorkerSlot]:
        """Return the slot of each worker, by its process id."""
        return {
            pid: slot for pid in self.workers() if (slot := _slot_of(pid)) is not None
        }

    async def get(self, path: str) -> tuple[int, bytes]:
        """Send a request to the operator port."""
        return await self.request("GET", path)

    async def of_each_worker(self, name: str) -> dict[int, float]:
        """Return one metric of each worker that answers, by the worker's number."""
        values = {}
        for slot in self.slots().values():
            connector = aiohttp.UnixConnector(path=slot.operator_socket)
            with suppress(aiohttp.ClientError, OSError):
                async with (
                    aiohttp.ClientSession(connector=connector) as session,
                    session.get("http://worker/metrics", headers=_OPERATOR) as answer,
                ):
                    values[slot.index] = _sample(await answer.text(), name)
        return values

    async def request(
        self, method: str, path: str, body: object = None
    ) -> tuple[int, bytes]:
        """Send a request to the operator port."""
        async with (
            aiohttp.ClientSession(headers=_OPERATOR) as session,
            session.request(method, self.operator_url + path, json=body) as answer,
        ):
            return answer.status, await answer.read()

    async def sample(self, name: str) -> float:
        """Return one of the merged metrics."""
        _, text = await self.get("/metrics")
        return _sample(text.decode(), name)

    async def is_ready(self) -> bool:
        """Return whether the program is ready."""
        status, _ = await self.get("/health/ready")
        return status == 200


def _sample(text: str, name: str) -> float:
    match = re.search(rf"(?m)^{re.escape(name)} (\S+)$", text)
    return float(match[1]) if match else 0.0


def _slot_of(pid: int) -> WorkerSlot | None:
    """Return the slot in a worker's command line; ``None`` if the process is gone."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except (FileNotFoundError, ProcessLookupError):
        return None
    given = dict(re.findall(r"--(of|index)=([^\0]+)", line))
    return WorkerSlot(given["of"], int(given["index"])) if len(given) == 2 else None


@asynccontextmanager
async def program(
    broker: LocalNode,
    namespace: str,
    redis: RedisServer,
    *,
    workers: int = 2,
    launcher: Sequence[str] = (sys.executable, "-m", "bridge"),
    **settings: str,
) -> AsyncIterator[Program]:
    """Start `bridge run --workers N` and wait until it is ready."""
    given = {
        "amqp_url": broker.url,
        "namespace": namespace,
        "port": "0",
        "operator_port": "0",
        "operator_token": OPERATOR_TOKEN,
        "jwt_secret": SECRET,
        "inbox": redis.url,
        "drain_timeout": "10s",
    }
    process = await asyncio.create_subprocess_exec(
        *(*launcher, "run", "--workers", str(workers)),
        env=environment(**(given | settings)),
        stdout=PIPE,
        stderr=PIPE,
    )
    family: list[int] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            running = Program(process, "", "")
            reading = tasks.create_task(running.read_log(), name="log")
            assert process.stdout is not None
            async with asyncio.timeout(LIMIT_S):
                words = (await process.stdout.readline()).decode().split()
            assert words, running.log
            running.public_url, running.operator_url = words[4].rstrip(","), words[6]
            await eventually(running.is_ready, within_s=30)
            yield running
            family = family_of(process.pid)
            if process.returncode is None:
                process.terminate()
            await reading
    finally:
        if process.returncode is None:
            family = family or family_of(process.pid)
            process.kill()
            await process.wait()
        await eventually(lambda: not any(map(is_alive, family)), within_s=30)


@dataclass
class Pages:
    """Windows of the stock client, and their events in order."""

    process: Process
    events: list[dict[str, object]] = field(default_factory=list, repr=False)

    async def read(self) -> None:
        """Collect the events until the process ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.events.append(orjson.loads(line))

    def of(self, kind: str) -> list[dict[str, object]]:
        """Return the events of one kind."""
        return [each for each in self.events if each["what"] == kind]

    def data(self, window: int) -> list[object]:
        """Return the data that one window has received, in order."""
        return [m["data"] for m in self.of("message") if m["window"] == window]

    def owners(self) -> set[str]:
        """Return the numbers of the workers that own the sessions."""
        return {str(each["session"]).rpartition(".")[2] for each in self.of("sync")}


@asynccontextmanager
async def pages(
    url: str, user: str, *, count: int, transports: str = "default"
) -> AsyncIterator[Pages]:
    """Open stock windows of a user; all are synced when the block is entered."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(PAGES), url, token_for(user), transports, str(count)),
        env=os.environ | {"NODE_PATH": str(NODE_MODULES)},
        stdout=PIPE,
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            opened = Pages(process)
            reading = tasks.create_task(opened.read(), name="pages")
            await eventually(lambda: len(opened.of("sync")) == count, within_s=30)
            try:
                yield opened
            except BaseException:  # the events explain why the test failed
                sys.stderr.write(
                    f"{[each for each in opened.events if each['what'] != 'message']}\n"
                )
                raise
            with suppress(
                ProcessLookupError
            ):  # without a window the process ends by itself
                process.kill()
            await reading
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
