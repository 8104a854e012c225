"""
Browse 100,000 dead letters, and redrive them with a kill -9 in the middle. Run by hand:

    python -m tests.bench.dead_letters

Uses a private RabbitMQ and a `bridge run` process with `sqlite:`. The dead letters belong
to 1,000 users; half of them have a message id. Prints a table; `--letters` and `--rate`
change the size. A test runs the same with fewer dead letters.
"""

import argparse
import asyncio
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import aiormq

from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.core.properties import header_int
from bridge.enums import Header
from tests.conftest import eventually
from tests.integration.dead_letters import take_all
from tests.integration.operator.api_client import ApiAsker
from tests.integration.operator.dead_letter_fixtures import (
    dead_letter_properties,
    fill,
    header,
    ready,
)
from tests.integration.programs import RunningProgram, program
from tests.integration.running import OPERATOR_TOKEN
from tests.local_node import LocalNode

USERS = 1000
_TEXT = "x" * 180


@dataclass
class Figures:
    """The measurements and the results of the checks."""

    letters: int
    seconds: dict[str, float] = field(default_factory=dict)
    memory_mib: dict[str, float] = field(default_factory=dict)
    killed_at: int = 0
    left_after_kill: int = 0
    order_kept: bool = False
    lost: int = 0
    published_twice: int = 0
    unmarked: int = 0
    stored_twice: int = 0

    @asynccontextmanager
    async def measured(self, what: str, running: RunningProgram) -> AsyncIterator[None]:
        """Record the duration of the block, and the bridge's memory after it."""
        started_s = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - started_s
        self.memory_mib[what] = _memory_mib(running, "VmHWM")


def _memory_mib(running: RunningProgram, line_name: str) -> float:
    status = Path(f"/proc/{running.process.pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(line_name))
    return int(line.split()[1]) / 1024


def _letters(names: BrokerNames, count: int) -> Iterator[tuple[str, bytes, bytes]]:
    for number in range(count):
        user = f"user-{number % USERS}"
        message_id = f"m-{number}".encode() if number % 2 else None
        yield (
            user,
            dead_letter_properties(
                number, names=names, user=user, message_id=message_id
            ),
            f'{{"n": {number}, "text": "{_TEXT}"}}'.encode(),
        )


@asynccontextmanager
async def _bridge(
    node: LocalNode, namespace: str, store: Path
) -> AsyncIterator[tuple[RunningProgram, ApiAsker]]:
    headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    async with (
        program(
            node, namespace, inbox=f"sqlite:{store}", inbox_max_messages="2000000"
        ) as running,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        yield running, ApiAsker(session, running.operator_url)


async def _job(
    api: ApiAsker, body: dict[str, object], *, until: int | None = None
) -> Any:
    """Start a redrive; return its job when it has ended, or has done `until`."""
    answer = await api.ask("POST", "/api/dead/redrive", body)
    assert answer.status == 202, answer
    job = answer.body["job"]

    async def is_there() -> bool:
        nonlocal job
        job = await api.get(f"/api/jobs/{job['id']}")
        return job["state"] != "running" or (until is not None and job["done"] >= until)

    await eventually(is_there, within_s=600)
    return job


async def measure(
    node: LocalNode, namespace: str, *, letters: int, rate_per_s: float
) -> Figures:
    """Run the whole measurement once."""
    figures = Figures(letters)
    names = BrokerNames(namespace)
    connection = aiormq.Connection(node.url)
    await connection.connect()
    channel = await connection.channel(publisher_confirms=False)
    assert isinstance(channel, aiormq.Channel)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "inbox.sqlite3"
        async with _bridge(node, namespace, store) as (running, api):
            # Receives a copy of each redriven message, with its headers.
            spy = f"{namespace}.spy"
            await channel.queue_declare(
                spy, durable=True, arguments={"x-queue-type": "quorum"}
            )
            await channel.queue_bind(spy, names.inbound)
            await fill(channel, names.dead, _letters(names, letters))
            await eventually(lambda: _has(node, names.dead, letters), within_s=60)
            figures.memory_mib["before"] = _memory_mib(running, "VmHWM")
            await _browse(figures, running, api)
            await _kill(figures, running, api, rate_per_s=rate_per_s)
        await eventually(lambda: _is_back(node, names.dead, figures), within_s=60)
        async with _bridge(node, namespace, store) as (running, api):
            first = (await api.get("/api/dead?limit=200"))["items"]
            times = [letter["dead_s"] for letter in first]
            figures.order_kept = times == sorted(times)
            async with figures.measured("redrive of the rest", running):
                await _job(api, {"all": True, "rate_per_s": rate_per_s})
            await eventually(lambda: _has(node, names.inbound_queue(), 0), within_s=300)
            running.process.terminate()
            await running.ended()
        _check_redrives(figures, await take_all(node, spy))
        _check_store(figures, store)
    await channel.queue_delete(spy)
    await connection.close()
    return figures


async def _has(node: LocalNode, queue: str, count: int) -> bool:
    return await ready(node, queue) == count


async def _is_back(node: LocalNode, queue: str, figures: Figures) -> bool:
    """Whether the broker has requeued the deliveries of the killed process."""
    before, figures.left_after_kill = figures.left_after_kill, await ready(node, queue)
    at_most = figures.letters - figures.killed_at
    return figures.left_after_kill == before and 0 < before <= at_most


async def _browse(figures: Figures, running: RunningProgram, api: ApiAsker) -> None:
    async with figures.measured("first page", running):
        page = await api.get("/api/dead")
    assert len(page["items"]) == 50
    async with figures.measured("second page", running):
        await api.get(f"/api/dead?cursor={page['next']}")
    async with figures.measured("filter that reads all", running):
        none = await api.get("/api/dead?user=nobody")
    assert none["scanned"] == figures.letters
    async with figures.measured("first page after that", running):
        again = await api.get("/api/dead")
    assert again["items"] == page["items"]


async def _kill(
    figures: Figures, running: RunningProgram, api: ApiAsker, *, rate_per_s: float
) -> None:
    async with figures.measured("redrive until the kill -9", running):
        # A little over half, to avoid the boundary of a batch.
        half = figures.letters // 2 + figures.letters // 70
        job = await _job(api, {"all": True, "rate_per_s": rate_per_s}, until=half)
    assert job["state"] == "running", job
    figures.killed_at = job["done"]
    running.process.kill()
    await running.process.wait()


def _check_redrives(figures: Figures, seen: list[Delivery]) -> None:
    """Check that each dead letter was published, and that repeats can be recognized."""
    ids: dict[int, Counter[bytes | None]] = {}
    for delivery in seen:
        number = header_int(delivery.properties.headers, "x-number")
        assert number is not None
        if not header_int(delivery.properties.headers, Header.REDRIVES):
            figures.unmarked += 1
        redriven_id = header(delivery, Header.REDRIVEN_ID)
        ids.setdefault(number, Counter())[redriven_id] += 1
    figures.lost = figures.letters - len(ids)
    for found in ids.values():
        figures.published_twice += sum(found.values()) > 1
        # With two ids, a repeat of the same dead letter could not be recognized.
        figures.unmarked += len(found) > 1 or None in found


def _check_store(figures: Figures, store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        stored, different = connection.execute(
            "SELECT count(*), count(DISTINCT data) FROM messages"
        ).fetchone()
    figures.stored_twice = stored - different
    figures.lost += figures.letters - different


async def main(letters: int, rate_per_s: float) -> None:
    async with LocalNode.start() as node:
        figures = await measure(node, "letters", letters=letters, rate_per_s=rate_per_s)
    print(f"{figures.letters:,} letters, redriven at up to {rate_per_s:,.0f}/s")
    print("| | s | peak MiB of the bridge so far |\n|---|---|---|")
    print(f"| before | | {figures.memory_mib['before']:.0f} |")
    for what, seconds in figures.seconds.items():
        print(f"| {what} | {seconds:.2f} | {figures.memory_mib[what]:.0f} |")
    print(f"killed after {figures.killed_at:,}; {figures.left_after_kill:,} were left")
    for name in ("order_kept", "lost", "published_twice", "unmarked", "stored_twice"):
        print(f"{name}: {getattr(figures, name)}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--letters", type=int, default=100_000)
    arguments.add_argument("--rate", type=float, default=5000)
    given = arguments.parse_args()
    asyncio.run(main(given.letters, given.rate))
