"""A private HAProxy in front of several bridges, for tests."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

from bridge.broker.kept_processes import KeptProcesses
from tests.conftest import eventually

_ENDED_WITHIN_S: Final = 10.0

# Long polling has to come back to the bridge that it began at: a cookie says which. Only
# bridges that are ready get anything new; what is connected stays where it is. One that
# leaves answers 503 before the next look at its health: another one is asked at once.
_CONFIG: Final = """
global
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 1m
    timeout server 1m
    timeout tunnel 1h
    timeout check 1s
    retries 3
    option redispatch
    retry-on conn-failure empty-response 503
frontend pages
    bind 127.0.0.1:{port}
    default_backend bridges
backend bridges
    balance leastconn
    option httpchk GET /health/ready
    cookie bridge_at insert indirect nocache
    default-server check inter 500ms fall 2 rise 1
"""


class Balancer:
    """One HAProxy. Make it with `start`; it may be ended and started again."""

    def __init__(self, kept: KeptProcesses, program: str, port: int) -> None:
        self._kept = kept
        self._program = program
        self.port = port

    @classmethod
    @asynccontextmanager
    async def start(
        cls, *, port: int, bridge_ports: Sequence[int]
    ) -> AsyncIterator[Self]:
        """Start it on `port` before bridges on their ports; end it when the block is left."""
        program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "no haproxy: install the package of that name"
        async with KeptProcesses.open() as kept:
            lines = [
                f"    server b{number} 127.0.0.1:{each} cookie b{number}\n"
                for number, each in enumerate(bridge_ports, start=1)
            ]
            text = _CONFIG.format(port=port) + "".join(lines)
            await asyncio.to_thread((kept.folder / "haproxy.cfg").write_text, text)
            balancer = cls(kept, program, port)
            await balancer.run()
            yield balancer

    async def run(self) -> None:
        """Start it and wait until it takes connections."""
        program = [self._program, "-db", "-f", "haproxy.cfg"]
        await self._kept.start("haproxy", program, {})
        await eventually(self._answers)

    async def kill(self) -> None:
        """End it with SIGKILL: all that goes through it is reset."""
        await self._kept.signal("haproxy", signal.SIGKILL)
        await self._kept.wait_until_ended("haproxy", within_s=_ENDED_WITHIN_S)

    async def _answers(self) -> bool:
        self._kept.take_reports()
        assert "haproxy" in self._kept.pids, await asyncio.to_thread(self._told)
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    def _told(self) -> str:
        return (self._kept.folder / "haproxy.out").read_text()
