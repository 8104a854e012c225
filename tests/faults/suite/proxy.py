"""A TCP proxy on a fixed port that cuts, freezes, slows and truncates connections."""

import asyncio
import re
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Self

_CHUNK_BYTES: Final = 65536
_SLOW_BYTES: Final = 400
_SLOW_PAUSE_S: Final = 0.02
# A response to a poll, whose body has messages. A message is at least a packet of this form.
_POLL_ANSWER: Final = re.compile(rb"^HTTP/1\.1 200 .*\r\n\r\n.*42\[", re.DOTALL)


class Proxy:
    """Forwards connections to a target. `connections` counts them since the start."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self._target_port = target_port
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_slow = False
        self._is_halving = False
        self._is_refusing = False
        self._answers_to_cut = 0
        self.connections = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, *, port: int, target_port: int) -> AsyncIterator[Self]:
        """Listen on loopback until the end of the block."""
        proxy = cls(port, target_port)
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", port)
        try:
            yield proxy
        finally:
            server.close()
            proxy.heal()
            proxy.cut()
            await server.wait_closed()

    @property
    def is_in_use(self) -> bool:
        """Whether it has connections."""
        return bool(self._writers)

    def heal(self) -> None:
        """End all faults; held data is forwarded."""
        self._is_slow = self._is_halving = self._is_refusing = False
        self._answers_to_cut = 0
        self._passing.set()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def refuse(self) -> None:
        """Reset new connections until `heal`."""
        self._is_refusing = True

    def freeze(self) -> None:
        """Forward nothing until `heal`; connections stay open."""
        self._passing.clear()

    def slow(self) -> None:
        """Forward about 20 kB per second and connection until `heal`."""
        self._is_slow = True

    def halve(self) -> None:
        """Forward half of the next chunk of each connection, then reset it; until `heal`."""
        self._is_halving = True

    def cut_answers(self, count: int) -> None:
        """Cut the next `count` poll answers with messages in the middle; until `heal`."""
        self._answers_to_cut = count

    @property
    def is_cutting_answers(self) -> bool:
        """Whether answers are still to be cut."""
        return self._answers_to_cut > 0

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._is_refusing:
            writer.transport.abort()
            return
        self.connections += 1
        self._writers.add(writer)
        back: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError):
                there, back = await asyncio.open_connection(
                    "127.0.0.1", self._target_port
                )
                self._writers.add(back)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass(reader, back))
                    tasks.create_task(self._pass(there, writer))
        finally:
            for each in (writer, back):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        # uvloop raises RuntimeError for a write to a transport that was just reset.
        with suppress(OSError, RuntimeError):
            while data := await source.read(_CHUNK_BYTES):
                await self._passing.wait()
                is_cut = self._answers_to_cut > 0 and bool(_POLL_ANSWER.match(data))
                self._answers_to_cut -= is_cut
                if self._is_halving or is_cut:
                    target.write(data[: len(data) // 2])
                    await target.drain()
                    # `_serve` resets both ends after this direction has ended.
                    target.close()
                    return
                await self._write(target, data)
        target.close()

    async def _write(self, target: asyncio.StreamWriter, data: bytes) -> None:
        while data:
            # Checked for each chunk, so that `heal` takes effect at once.
            size = _SLOW_BYTES if self._is_slow else len(data)
            target.write(data[:size])
            data = data[size:]
            await target.drain()
            if self._is_slow:
                await asyncio.sleep(_SLOW_PAUSE_S)


_used_ports: Final[set[int]] = set()


def free_ports(count: int) -> list[int]:
    """
    Choose ports that are free now, outside the kernel's range for outgoing connections.

    A client that keeps connecting to a port of that range eventually connects to itself.
    No port is returned twice: most are opened seconds later, and two servers could
    otherwise get the same one.
    """
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    end = max(int(text.split()[0]), 12_000)
    found: list[int] = []
    while len(found) < count:
        port = 10_000 + secrets.randbelow(end - 10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _used_ports:
            _used_ports.add(port)
            found.append(port)
    return found
