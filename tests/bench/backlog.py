"""
Measure how the bridge handles a large backlog. Run by hand:

    python -m tests.bench.backlog offline     100,000 messages wait for 1,000 users, who
                                              all connect within 10 s
    python -m tests.bench.backlog stalled     1,000,000 messages are published while the
                                              store is locked

Uses a private RabbitMQ and a `bridge run` process with `sqlite:`. Prints a table;
`--messages` and `--users` change the size. Memory is the resident set of the bridge.
"""

import argparse
import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

from aiormq.abc import ChannelFrame

from bridge.core.broker_names import BrokerNames
from tests.conftest import eventually
from tests.integration.amqp.conftest import Raw, open_raw
from tests.integration.programs import RunningProgram, command, program
from tests.integration.running import SECRET, open_windows
from tests.local_node import LocalNode
from tests.unit.amqp.wire import publish

NAMESPACE = "backlog"
BODY = b'{"text": "' + b"x" * 180 + b'"}'
PROPERTIES = b"\x10\x00\x02"  # delivery mode 2
BURST = 500


@dataclass
class Memory:
    """Samples of the resident set of a process."""

    pid: int
    samples_mib: list[float] = field(default_factory=list)

    def sample(self) -> float:
        """Add a sample and return it, in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        self.samples_mib.append(int(line.split()[1]) / 1024)
        return self.samples_mib[-1]

    async def keep_sampling(self) -> None:
        """Add ten samples per second, until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(0.1)


async def burst(raw: Raw, exchange: str, users: list[str]) -> None:
    """Publish one message for each of `users` in one write."""
    payload = b"".join(
        publish(
            raw.channel.number,
            exchange.encode(),
            user.encode(),
            raw_properties=PROPERTIES,
            body=BODY,
        )
        for user in users
    )
    await raw.channel.write_queue.put(ChannelFrame(payload, should_close=False))
    # The broker answers after it has processed all frames before.
    await raw.channel.basic_qos(prefetch_count=0)


async def publish_many(raw: Raw, users: list[str], number: int) -> None:
    """Publish `number` messages, distributed over `users`."""
    exchange = BrokerNames(NAMESPACE).messages
    for start in range(0, number, BURST):
        count = min(BURST, number - start)
        await burst(
            raw, exchange, [users[(start + n) % len(users)] for n in range(count)]
        )


@asynccontextmanager
async def bridge(
    store: Path,
) -> AsyncIterator[tuple[LocalNode, Raw, RunningProgram, Memory]]:
    async with (
        LocalNode.start() as node,
        program(
            node,
            NAMESPACE,
            inbox=f"sqlite:{store}",
            inbox_max_messages="2000000",
        ) as running,
        open_raw(node.url) as raw,
    ):
        yield node, raw, running, Memory(running.process.pid)


async def offline(users_count: int, messages: int) -> None:
    """Deliver the stored messages of many users who connect at once."""
    users = [f"user-{number}" for number in range(users_count)]
    with tempfile.TemporaryDirectory() as folder:
        async with bridge(Path(folder) / "inbox.sqlite3") as (
            node,
            raw,
            running,
            memory,
        ):
            queue = BrokerNames(NAMESPACE).inbound_queue()
            started_s = time.monotonic()
            await publish_many(raw, users, messages)

            async def is_stored() -> bool:
                return await raw.count(queue) == 0

            await eventually(is_stored, within_s=300)
            stored_s = time.monotonic() - started_s
            before = memory.sample()
            tokens = [
                (await command("token", user, jwt_secret=SECRET)).out.strip()
                if number == 0
                else _token(user)
                for number, user in enumerate(users)
            ]
            sampling = asyncio.ensure_future(memory.keep_sampling())
            started_s = time.monotonic()
            async with open_windows(running.public_url, tokens) as windows:
                online_s = time.monotonic() - started_s
                await eventually(
                    lambda: sum(len(w.data()) for w in windows) >= messages,
                    within_s=300,
                )
                delivered_s = time.monotonic() - started_s
                each = {len(window.data()) for window in windows}
            sampling.cancel()
            print(f"messages {messages}, users {users_count}")
            print(f"stored after {stored_s:.1f} s")
            print(f"all online and synced after {online_s:.1f} s")
            print(f"all delivered after {delivered_s:.1f} s, per user {each}")
            print(
                f"memory before {before:.0f} MiB, highest {max(memory.samples_mib):.0f} MiB"
            )
            del node


def _token(user: str) -> str:
    from bridge.auth.issuing import issue_token  # noqa: PLC0415 - one place

    return issue_token(
        user,
        secret=SECRET,
        algorithm="HS256",
        ttl_s=3600,
        audience=None,
        issuer=None,
        now_s=time.time(),
    )


async def stalled(messages: int) -> None:
    """Lock the store: memory must stay bounded while the broker keeps the messages."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "inbox.sqlite3"
        async with bridge(store) as (_, raw, running, memory):
            await publish_many(raw, ["ann"], 100)
            queue = BrokerNames(NAMESPACE).inbound_queue()

            async def is_stored() -> bool:
                return await raw.count(queue) == 0

            await eventually(is_stored, within_s=30)
            with closing(sqlite3.connect(store, isolation_level=None)) as blocker:
                blocker.execute("BEGIN IMMEDIATE")  # blocks all other writers
                print("| messages published | bridge MiB |\n|---|---|")
                for tenth in range(11):
                    print(f"| {messages * tenth // 10} | {memory.sample():.1f} |")
                    if tenth < 10:
                        await publish_many(raw, ["ann"], messages // 10)
                waiting = await raw.count(queue)
                print(f"ready in the queue: {waiting}")
                blocker.execute("ROLLBACK")
            started_s = time.monotonic()
            await eventually(is_stored, within_s=600)
            print(
                f"unlocked: all stored {time.monotonic() - started_s:.0f} s later, "
                f"{memory.sample():.1f} MiB"
            )
            del running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("offline", "stalled"))
    parser.add_argument("--messages", type=int)
    parser.add_argument("--users", type=int, default=1000)
    given = parser.parse_args()
    if given.what == "offline":
        asyncio.run(offline(given.users, given.messages or 100_000))
    else:
        asyncio.run(stalled(given.messages or 1_000_000))


if __name__ == "__main__":
    main()
