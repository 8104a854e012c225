"""
What the open console costs the bridge, by hand: `python -m tests.bench.console`.

A private RabbitMQ and a real `bridge run` in a process of its own; so many windows of as
many users are opened. The processor time that the bridge spends is measured while nobody
looks, then while the console's two questions are asked as often as the page asks them,
then with the first of them asked as fast as it is answered.
"""

import argparse
import asyncio
import resource
import time
from pathlib import Path
from typing import Final

import aiohttp

from bridge.auth.issuing import signed_token
from bridge.demo.private_node import LocalNode
from bridge.settings.load import load_settings
from tests.integration.programs import program
from tests.integration.running import OPERATOR_TOKEN, SECRET, open_windows

_QUESTIONS: Final = ("/api/overview", "/api/queues")
_EACH_S: Final = 2.0  # the pause of the page (readings.js)


def _spent_s(pid: int) -> float:
    """Return the processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / 100


async def measure(windows_count: int, seconds: float) -> None:
    """Open the windows, ask, and print what that cost."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settings = load_settings({"jwt_secret": SECRET})
    headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    async with (
        LocalNode.start() as node,
        program(node, "cost", max_windows_per_address=str(windows_count + 1)) as run,
        aiohttp.ClientSession(run.operator_url, headers=headers) as session,
    ):
        users = [f"user-{number}" for number in range(windows_count)]
        tokens = [signed_token(settings, user, ttl_s=3600) for user in users]

        async def ask(question: str) -> None:
            async with session.get(question) as answer:
                await answer.read()
                assert answer.status == 200

        async def look(times: int, *questions: str, pause_s: float) -> float:
            """Ask so often, and return the bridge's share of a core meanwhile."""
            before_s, began_s = _spent_s(run.process.pid), time.monotonic()
            for _ in range(times):
                for question in questions:
                    await ask(question)
                await asyncio.sleep(pause_s)
            lasted_s = time.monotonic() - began_s
            return (_spent_s(run.process.pid) - before_s) / lasted_s

        async with open_windows(run.public_url, tokens):
            times = int(seconds / _EACH_S)
            alone = await look(times, pause_s=_EACH_S)
            seen = await look(times, *_QUESTIONS, pause_s=_EACH_S)
            before_s = _spent_s(run.process.pid)
            await look(1000, _QUESTIONS[0], pause_s=0)
            each_s = (_spent_s(run.process.pid) - before_s) / 1000
    print(f"{windows_count} windows, {seconds:g} s each")
    print(f"nobody looks: {100 * alone:.2f} % of a core")
    print(f"the console is open: {100 * seen:.2f} %, {100 * (seen - alone):.2f} % more")
    print(f"one {_QUESTIONS[0]}: {1000 * each_s:.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.windows, arguments.seconds))
