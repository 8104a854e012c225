"""
What the bridge does when much comes at once: two measurements, by hand.

    python -m tests.bench.crowds offline     100,000 messages wait for 1,000 users, who
                                             all come online within 10 s
    python -m tests.bench.crowds standing    1,000,000 messages are published while the
                                             store stands still

A private RabbitMQ, a real `bridge run` with `sqlite:` in a process of its own. Prints a
table; `--messages` and `--users` make it smaller. Memory is the bridge's resident set.
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
from bridge.demo.private_node import LocalNode
from tests.conftest import eventually
from tests.integration.amqp.conftest import Raw, open_raw
from tests.integration.programs import RunningProgram, command, program
from tests.integration.running import SECRET, open_windows
from tests.unit.amqp.wire import publish

NAMESPACE = "crowds"
BODY = b'{"text": "' + b"x" * 180 + b'"}'
PROPERTIES = b"\x10\x00\x02"  # delivery mode 2
BURST = 500


@dataclass
class Memory:
    """The resident set of a process, looked at again and again."""

    pid: int
    seen_mib: list[float] = field(default_factory=list)

    def look(self) -> float:
        """Read it now, in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        self.seen_mib.append(int(line.split()[1]) / 1024)
        return self.seen_mib[-1]

    async def keep_looking(self) -> None:
        """Look ten times a second, until cancelled."""
        while True:
            self.look()
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
    # Answered when all before it was worked on.
    await raw.channel.basic_qos(prefetch_count=0)


async def publish_many(raw: Raw, users: list[str], number: int) -> None:
    """Publish `number` messages, spread over `users`."""
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
    """All that waits for many users is delivered when they come, in bounded memory."""
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
            before = memory.look()
            tokens = [
                (await command("token", user, jwt_secret=SECRET)).out.strip()
                if number == 0
                else _token(user)
                for number, user in enumerate(users)
            ]
            looking = asyncio.ensure_future(memory.keep_looking())
            started_s = time.monotonic()
            async with open_windows(running.public_url, tokens) as windows:
                online_s = time.monotonic() - started_s
                await eventually(
                    lambda: sum(len(w.data()) for w in windows) >= messages,
                    within_s=300,
                )
                delivered_s = time.monotonic() - started_s
                each = {len(window.data()) for window in windows}
            looking.cancel()
            print(f"messages {messages}, users {users_count}")
            print(f"stored after {stored_s:.1f} s")
            print(f"all online and synced after {online_s:.1f} s")
            print(f"all delivered after {delivered_s:.1f} s, per user {each}")
            print(
                f"memory before {before:.0f} MiB, highest {max(memory.seen_mib):.0f} MiB"
            )
            del node


def _token(user: str) -> str:
    from bridge.auth.jwt import issue_token  # noqa: PLC0415 - one place

    return issue_token(
        user,
        secret=SECRET,
        algorithm="HS256",
        ttl_s=3600,
        audience=None,
        issuer=None,
        now_s=time.time(),
    )


async def standing(messages: int) -> None:
    """A store that stands still: prefetch fills, memory stays, the broker keeps the rest."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "inbox.sqlite3"
        async with bridge(store) as (_, raw, running, memory):
            await publish_many(raw, ["ann"], 100)
            queue = BrokerNames(NAMESPACE).inbound_queue()

            async def is_stored() -> bool:
                return await raw.count(queue) == 0

            await eventually(is_stored, within_s=30)
            with closing(sqlite3.connect(store, isolation_level=None)) as blocker:
                blocker.execute("BEGIN IMMEDIATE")  # nobody else writes from here on
                print("| messages published | bridge MiB |\n|---|---|")
                for tenth in range(11):
                    print(f"| {messages * tenth // 10} | {memory.look():.1f} |")
                    if tenth < 10:
                        await publish_many(raw, ["ann"], messages // 10)
                waiting = await raw.count(queue)
                print(f"ready in the queue: {waiting}")
                blocker.execute("ROLLBACK")
            started_s = time.monotonic()
            await eventually(is_stored, within_s=600)
            print(
                f"mended: all stored {time.monotonic() - started_s:.0f} s later, "
                f"{memory.look():.1f} MiB"
            )
            del running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("offline", "standing"))
    parser.add_argument("--messages", type=int)
    parser.add_argument("--users", type=int, default=1000)
    given = parser.parse_args()
    if given.what == "offline":
        asyncio.run(offline(given.users, given.messages or 100_000))
    else:
        asyncio.run(standing(given.messages or 1_000_000))


if __name__ == "__main__":
    main()
