"""The HAProxy in front of the fleet, with the shipped configuration."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from bridge.demo.processes import KeptProcesses
from tests.balancers import command, write_config

_START_TIMEOUT_S: Final = 20.0
_EXIT_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05


class Haproxy:
    """One HAProxy, created by `start`; it can be killed and run again."""

    def __init__(self, kept: KeptProcesses, port: int) -> None:
        self._kept = kept
        self.port = port

    @classmethod
    @asynccontextmanager
    async def start(
        cls, *, port: int, bridge_ports: Sequence[int]
    ) -> AsyncIterator[Self]:
        """Start it on `port` in front of the bridges; stop it at the end of the block."""
        async with KeptProcesses.open() as kept:
            await asyncio.to_thread(
                write_config,
                "haproxy",
                kept.folder,
                port=port,
                bridge_ports=bridge_ports,
            )
            balancer = cls(kept, port)
            await balancer.run()
            yield balancer

    async def run(self) -> None:
        """Start it and wait until it accepts connections."""
        await self._kept.start("haproxy", command("haproxy", self._kept.folder), {})
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not await self._accepts():
                self._kept.take_reports()
                if "haproxy" not in self._kept.pids:
                    output = self._kept.folder / "haproxy.out"
                    raise RuntimeError(await asyncio.to_thread(Path.read_text, output))
                await asyncio.sleep(_POLL_S)

    async def kill(self) -> None:
        """Kill it with SIGKILL, which resets all its connections."""
        await self._kept.signal("haproxy", signal.SIGKILL)
        await self._kept.wait_until_ended("haproxy", within_s=_EXIT_TIMEOUT_S)

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
