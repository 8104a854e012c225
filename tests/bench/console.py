"""
Measure the cost of an open console. Run by hand: `python -m tests.bench.console`.

Uses a private RabbitMQ and a `bridge run` process with one window per user. The processor
time of the bridge is measured without a console, then with the console's two requests at
the interval of the page, then with the first request repeated as fast as possible.
"""

import argparse
import asyncio
import resource
import time
from pathlib import Path
from typing import Final

import aiohttp

from bridge.auth.issuing import signed_token
from bridge.settings.load import load_settings
from tests.integration.programs import program
from tests.integration.running import OPERATOR_TOKEN, SECRET, open_windows
from tests.local_node import LocalNode

_REQUESTS: Final = ("/api/overview", "/api/queues")
_INTERVAL_S: Final = 2.0  # as the page does (readings.js)


def _spent_s(pid: int) -> float:
    """Return the processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / 100


async def measure(windows_count: int, seconds: float) -> None:
    """Open the windows, send the requests, and print their cost."""
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

        async def request(path: str) -> None:
            async with session.get(path) as response:
                await response.read()
                assert response.status == 200

        async def load(times: int, *paths: str, pause_s: float) -> float:
            """Repeat the requests; return the share of a core that the bridge used."""
            before_s, start_s = _spent_s(run.process.pid), time.monotonic()
            for _ in range(times):
                for path in paths:
                    await request(path)
                await asyncio.sleep(pause_s)
            lasted_s = time.monotonic() - start_s
            return (_spent_s(run.process.pid) - before_s) / lasted_s

        async with open_windows(run.public_url, tokens):
            times = int(seconds / _INTERVAL_S)
            alone = await load(times, pause_s=_INTERVAL_S)
            seen = await load(times, *_REQUESTS, pause_s=_INTERVAL_S)
            before_s = _spent_s(run.process.pid)
            await load(1000, _REQUESTS[0], pause_s=0)
            each_s = (_spent_s(run.process.pid) - before_s) / 1000
    print(f"{windows_count} windows, {seconds:g} s each")
    print(f"no console: {100 * alone:.2f} % of a core")
    print(f"one open console: {100 * seen:.2f} %, {100 * (seen - alone):.2f} % more")
    print(f"one {_REQUESTS[0]}: {1000 * each_s:.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.windows, arguments.seconds))
