"""A TCP proxy between the bridge and the broker, with faults on demand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

from yarl import URL

from bridge.amqp.connection import BrokerAddress


class TcpProxy:
    """Passes bytes on, freezes, or cuts. `connections` counts all connections so far."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._passing = asyncio.Event()
        self._passing.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._bytes_until_cut: int | None = None
        self._is_closed = False
        self.connections = 0
        self.is_holding = False  # bytes have arrived that are not passed on
        self.address = BrokerAddress(())

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Self]:
        """Open a proxy for the broker at `url`; connect to its `address`."""
        target = URL(url)
        proxy = cls(target.host or "", target.port or 0)
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
        here = target.with_port(server.sockets[0].getsockname()[1])
        # With the shortest heartbeat, a frozen connection is detected within 7 s.
        proxy.address = BrokerAddress((str(here),), heartbeat_s=1)
        try:
            yield proxy
        finally:
            server.close()
            proxy.thaw()
            proxy.cut()
            await server.wait_closed()

    def freeze(self) -> None:
        """Pass nothing on in either direction; connections stay open."""
        self._passing.clear()

    def thaw(self) -> None:
        """Pass bytes on again, including those that arrived meanwhile."""
        self._passing.set()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._open:
            writer.transport.abort()

    def hang_up(self) -> None:
        """Close all connections in order, between two frames if frozen there."""
        for writer in self._open:
            writer.close()

    def refuse(self) -> None:
        """Abort new connections at once."""
        self._is_closed = True

    def accept(self) -> None:
        """Accept new connections again."""
        self._is_closed = False

    def cut_after(self, bytes_from_broker: int) -> None:
        """Cut after this many more bytes from the broker, also in the middle of a frame."""
        self._bytes_until_cut = bytes_from_broker

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._is_closed:
            writer.transport.abort()
            return
        self.connections += 1
        self._open.add(writer)
        with suppress(OSError):
            there, back = await asyncio.open_connection(*self._target)
            self._open.add(back)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, back))
                tasks.create_task(self._pass(there, writer, is_from_broker=True))
            self._open.discard(back)
        self._open.discard(writer)
        writer.transport.abort()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        *,
        is_from_broker: bool = False,
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                self.is_holding = not self._passing.is_set()
                await self._passing.wait()
                self.is_holding = False
                if is_from_broker and self._bytes_until_cut is not None:
                    data = data[: self._bytes_until_cut]
                    self._bytes_until_cut -= len(data)
                target.write(data)
                await target.drain()
                if is_from_broker and self._bytes_until_cut == 0:
                    self._bytes_until_cut = None
                    self.cut()
        target.close()
