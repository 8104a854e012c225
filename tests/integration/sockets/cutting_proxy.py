"""A TCP proxy that resets a client's connection in the middle of a chosen response."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class _Cut:
    mark: bytes
    after_bytes: int


class CuttingProxy:
    """
    Forwards connections to a port of this machine.

    Attributes:
        cuts: How many connections were reset.

    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._cut: _Cut | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.cuts = 0

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        return f"http://127.0.0.1:{self.port}"

    def cut_next(self, mark: bytes, *, after_bytes: int) -> None:
        """Forward only `after_bytes` bytes of the next response with `mark`, and reset."""
        self._cut = _Cut(mark, after_bytes)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Forward one connection in both directions until it ends."""
        there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers |= {back, writer}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_forward(reader, back))
            await self._forward_responses(there, writer)
            back.transport.abort()
            writer.transport.abort()
        self._writers -= {back, writer}

    def close(self) -> None:
        """Abort all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _forward_responses(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError, RuntimeError):
            while data := await source.read(1 << 16):
                cut = self._cut
                if cut is not None and cut.mark in data:
                    self._cut = None
                    target.write(data[: cut.after_bytes])
                    await target.drain()
                    target.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE
                    )
                    self.cuts += 1
                    return
                target.write(data)
                await target.drain()


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    # uvloop raises RuntimeError for a write to a transport that was just aborted.
    with suppress(OSError, RuntimeError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.transport.abort()


@asynccontextmanager
async def open_cutting_proxy(target_port: int) -> AsyncIterator[CuttingProxy]:
    """Listen on a free port until the block is left."""
    proxy = CuttingProxy(target_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.close()
        await server.wait_closed()
