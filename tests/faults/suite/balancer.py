"""The HAProxy in front of a fleet, with the configuration that is shipped, to be killed."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from bridge.demo.processes import KeptProcesses
from tests.balancers import command, write_config

_ANSWERS_WITHIN_S: Final = 20.0
_ENDED_WITHIN_S: Final = 10.0
_LOOK_EACH_S: Final = 0.05


class Haproxy:
    """One HAProxy. Make it with `start`; it may be ended and started again."""

    def __init__(self, kept: KeptProcesses, port: int) -> None:
        self._kept = kept
        self.port = port

    @classmethod
    @asynccontextmanager
    async def start(
        cls, *, port: int, bridge_ports: Sequence[int]
    ) -> AsyncIterator[Self]:
        """Start it on `port` before bridges on their ports; end it when the block is left."""
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
        """Start it and wait until it takes connections."""
        await self._kept.start("haproxy", command("haproxy", self._kept.folder), {})
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            while not await self._answers():
                self._kept.take_reports()
                if "haproxy" not in self._kept.pids:
                    told = self._kept.folder / "haproxy.out"
                    raise RuntimeError(await asyncio.to_thread(Path.read_text, told))
                await asyncio.sleep(_LOOK_EACH_S)

    async def kill(self) -> None:
        """End it with SIGKILL: all that goes through it is reset."""
        await self._kept.signal("haproxy", signal.SIGKILL)
        await self._kept.wait_until_ended("haproxy", within_s=_ENDED_WITHIN_S)

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
