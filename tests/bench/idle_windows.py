"""40,000 idle windows on several workers with Redis: memory, kernel memory, and CPU of pings."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from tests.bench.run import BenchWorld
from tests.bench.servers import SERVER_KINDS, Processors, Server, cpu_us, running
from tests.bench.window_process import windows
from tests.bench.workloads import Figures, users
from tests.redis_server import RedisServer

WORKERS: Final = 4
# The windows of one process need one descriptor each, and hard limits are often 20,000.
_WINDOW_PROCESSES: Final = 4
_REST_S: Final = 3.0
_PAGE_KIB: Final = 4


async def idle_windows(world: BenchWorld, number: int, seconds: float) -> Figures:
    """
    Connect `number` windows of different users, and leave them idle for `seconds`.

    Returns:
        KiB of all processes of bridge, before and for each window; KiB of kernel memory
        for each connection, its two ends together; microseconds a second for each window.

    """
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer.start(world.folder))
        settings = {"BRIDGE_INBOX": redis.url, "BRIDGE_WORKERS": str(WORKERS)}
        server = await stack.enter_async_context(
            running(
                SERVER_KINDS["memory"],
                broker_url=world.broker_url,
                folder=world.folder,
                pin=Processors("any", "any"),
                settings=settings,
            )
        )
        some = [
            await stack.enter_async_context(windows("any"))
            for _ in range(_WINDOW_PROCESSES)
        ]
        await asyncio.sleep(_REST_S)
        before, kernel_before = pss_kib(server), kernel_kib()
        share = number // len(some)
        for at, process in enumerate(some):
            await process.open(server.port, users(share, first=at * share), syncs=True)
        await asyncio.sleep(_REST_S)
        after, kernel_after = pss_kib(server), kernel_kib()
        used_us = sum(map(cpu_us, tree(server.pid)))
        await asyncio.sleep(seconds)
        used_us = sum(map(cpu_us, tree(server.pid))) - used_us
    return {
        "base_mib": before / 1024,
        "all_mib": after / 1024,
        "window_kib": (after - before) / number,
        "kernel_kib": (kernel_after - kernel_before) / number,
        "us_per_s": used_us / seconds / number,
    }


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from tree(int(child))


def pss_kib(server: Server) -> int:
    """Return the memory of all processes in KiB; shared pages are divided among them."""
    return sum(
        int(line.split()[1])
        for pid in tree(server.pid)
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )


def kernel_kib() -> int:
    """Return the kernel's own memory in KiB: its objects, and the buffers of sockets."""
    slab = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("Slab:")
    )
    sockets = Path("/proc/net/sockstat").read_text().split("TCP:")[1].split("\n")[0]
    return slab + int(sockets.split("mem")[1]) * _PAGE_KIB
