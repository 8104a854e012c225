"""
Many requests from many windows: each of them ends in exactly one answer.

The test of `make test` sends 2,000. This sends any number, and prints what came of them:

    python -m tests.integration.requests.many_requests --requests 10000 --windows 200
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

import aio_pika
import aiohttp
import orjson
from aio_pika.abc import AbstractIncomingMessage

from tests.conftest import HASH_PLUGINS, SLOW_FACTOR, eventually
from tests.integration.requests.conftest import request_settings, requesting_bridge
from tests.integration.running import RunningBridge
from tests.local_node import LocalNode

EVENTS = "job.cancel,job.lost"


def kind_of(number: int) -> int:
    """Return what becomes of a request: 0 to 9, mixed in each window."""
    return number // 7 % 10


@dataclass
class AskingWindow:
    """A page without a client library that keeps a few requests in flight."""

    websocket: aiohttp.ClientWebSocketResponse
    answers: dict[int, list[str]] = field(default_factory=dict)  # codes, by request

    async def ask(self, numbers: range, *, in_flight: int) -> None:
        """Send a request for each number, and the next one after each answer."""
        waiting = iter(numbers)
        for _ in range(in_flight):
            await self._send(next(waiting, None))
        async for message in self.websocket:
            packet: str = message.data
            if packet == "2":
                await self.websocket.send_str("3")
            elif packet.startswith("43"):
                number, _, rest = packet[2:].partition("[")
                (answer,) = orjson.loads(f"[{rest}")
                code = "ok" if answer["ok"] else answer["code"]
                self.answers.setdefault(int(number), []).append(code)
                await self._send(next(waiting, None))

    async def _send(self, number: int | None) -> None:
        if number is not None:
            event = "job.lost" if kind_of(number) == 9 else "job.cancel"
            body = orjson.dumps([event, {"id": number}]).decode()
            await self.websocket.send_str(f"42{number}{body}")


@asynccontextmanager
async def replying(broker: LocalNode, namespace: str) -> AsyncIterator[None]:
    """Run a worker that replies, reports errors, replies twice, or never replies."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(f"{namespace}.requests", "job.cancel")

        async def receive(request: AbstractIncomingMessage) -> None:
            kind = kind_of(orjson.loads(request.body)["id"])
            if kind == 8:
                return
            reply = aio_pika.Message(
                request.body,
                correlation_id=request.correlation_id,
                type="error" if kind == 7 else None,
            )
            for _ in range(2 if kind == 6 else 1):
                assert request.reply_to
                await channel.default_exchange.publish(
                    reply, request.reply_to, mandatory=False
                )

        await queue.consume(receive, no_ack=True)
        yield


async def ask_from_windows(
    running: RunningBridge, *, requests: int, windows: int, within_s: float
) -> dict[int, list[str]]:
    """Send `requests` from `windows` windows; return the codes of all answers, by request."""
    url = f"{running.listening.public_url}/socket.io/?EIO=4&transport=websocket"
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        asyncio.TaskGroup() as tasks,
    ):
        asking = []
        for place in range(windows):
            websocket = await session.ws_connect(url)
            token = running.token(f"user-{place}")
            await websocket.send_str("40" + orjson.dumps({"token": token}).decode())
            window = AskingWindow(websocket)
            while not str((await websocket.receive()).data).startswith("40"):
                pass
            asking.append(window)
        for place, window in enumerate(asking):
            numbers = range(place, requests, windows)
            tasks.create_task(window.ask(numbers, in_flight=8), name="window")
        await eventually(
            lambda: sum(len(window.answers) for window in asking) >= requests,
            within_s=within_s,
        )
        # Second answers, if there are any, were sent before this one.
        late = "bridge_request_late_replies_total"
        twice = len([n for n in range(requests) if kind_of(n) == 6])
        await eventually(lambda: running.sample(late) >= twice)
        for window in asking:
            await window.websocket.close()
    return {number: codes for each in asking for number, codes in each.answers.items()}


def expected_code(number: int) -> str:
    """Return the code of the only answer to a request."""
    kinds = {7: "refused", 8: "timeout", 9: "unroutable"}
    return kinds.get(kind_of(number), "ok")


async def main(requests: int, windows: int) -> None:
    """Send the requests over a private broker and print the answers."""
    namespace = "many"
    async with LocalNode.start(plugins=HASH_PLUGINS) as broker:
        settings = request_settings(
            broker, namespace, page_events=EVENTS, request_timeout="20s"
        )
        async with requesting_bridge(settings) as running, replying(broker, namespace):
            started_s = monotonic()
            answers = await ask_from_windows(
                running,
                requests=requests,
                windows=windows,
                within_s=600 / SLOW_FACTOR,
            )
            took_s = monotonic() - started_s
    codes = Counter(code for each in answers.values() for code in each)
    twice = sum(len(each) != 1 for each in answers.values())
    wrong = sum(codes != [expected_code(n)] for n, codes in answers.items())
    missing = requests - len(answers)
    sys.stdout.write(
        f"{requests} requests of {windows} windows in {took_s:.1f} s: {dict(codes)}\n"
        f"{missing} without an answer, {twice} with several, {wrong} with an unexpected one\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--windows", type=int, default=200)
    given = parser.parse_args()
    asyncio.run(main(given.requests, given.windows))
