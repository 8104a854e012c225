"""
The cost of TLS on the public port: a window, a connect, a message.

    python -m tests.bench.tls [WINDOWS]

Serves windows of one user without and with TLS, ECDSA and RSA, on the loop of the bridge;
another process has the pages. Prints memory and processor time of the server. A message of
250 bytes is stored in an inbox in memory and written to all windows.
"""

import asyncio
import gc
import os
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import attrgetter
from pathlib import Path
from typing import Final

import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa

from bridge.cli.run import tune_garbage_collector
from bridge.logging import configure_logs
from tests.certificates import Authority
from tests.conftest import eventually
from tests.integration.sockets.running_server import (
    Plan,
    RunningServer,
    open_server,
)
from tests.integration.sockets.security import Security, port_certificate, using
from tests.tokens import token

_USER: Final = "ann"
_AT_ONCE: Final = 50
_MESSAGES: Final = 100
_LIMIT_S: Final = 120.0
_POLL_S: Final = 0.02


def main() -> None:
    """Serve, or open the pages if a URL is given."""
    windows = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    if len(sys.argv) > 2:
        uvloop.run(_open_pages(windows, port=int(sys.argv[2]), cafile=sys.argv[3]))
        return
    configure_logs(level="error", log_format="json")
    tune_garbage_collector()
    print("| | KiB a window | µs a connect | µs a write |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder), "authority")
        rsa_key = rsa.generate_private_key(65537, 2048)
        for kind, key in (("plain", None), ("ECDSA", None), ("RSA 2048", rsa_key)):
            security = None
            if kind != "plain":
                signed = authority.sign("server", address="127.0.0.1", key=key)
                client = ssl.create_default_context(cafile=authority.cert)
                security = Security(port_certificate(signed), client)
            with using(security):
                row = uvloop.run(_measure(windows, str(authority.cert)))
            print(f"| {kind} | {' | '.join(f'{each:.1f}' for each in row)} |")


async def _measure(windows: int, cafile: str) -> tuple[float, float, float]:
    """Return KiB a window, and microseconds a connect and a write."""
    async with open_server(Plan(windows_per_user=windows)) as server:
        async with _pages(server, _AT_ONCE, cafile):  # fills caches
            pass
        before_kib, before_s = _resident_kib(), time.process_time()
        async with _pages(server, windows, cafile):
            connect_s = time.process_time() - before_s
            gc.collect()
            kib = _resident_kib() - before_kib
            before_s = time.process_time()
            for number in range(_MESSAGES):
                await server.store(_USER, "x" * 200 + str(number))
                await asyncio.sleep(_POLL_S)
            write_s = time.process_time() - before_s
    return (
        kib / windows,
        connect_s / windows * 1e6,
        write_s / windows / _MESSAGES * 1e6,
    )


@asynccontextmanager
async def _pages(
    server: RunningServer, windows: int, cafile: str
) -> AsyncIterator[None]:
    """Open windows in another process until the block is left."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.tls", str(windows)),
        *(str(server.port), cafile if Security.current else ""),
    )
    is_live = attrgetter("is_live")
    try:
        await eventually(
            lambda: sum(map(is_live, server.windows(_USER))) == windows,
            within_s=_LIMIT_S,
        )
        yield
    finally:
        process.kill()
        await process.wait()
        await eventually(lambda: not server.windows(_USER), within_s=_LIMIT_S)


def _resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


class _Page(asyncio.Protocol):
    """A window that reads and answers nothing."""

    def __init__(self, port: int, auth: str) -> None:
        self._connect = b"40" + auth.encode()
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert hasattr(transport, "write")
        length = len(self._connect)
        frame = b"\x81\xfe" + length.to_bytes(2, "big") + bytes(4) + self._connect
        transport.write(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
            b"Host: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\n\r\n" % self._port + frame
        )


async def _open_pages(windows: int, *, port: int, cafile: str) -> None:
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context(cafile=cafile) if cafile else None
    auth = f'{{"token":"{token(sub=_USER)}"}}'
    opened: list[object] = []
    for start in range(0, windows, _AT_ONCE):
        opened += await asyncio.gather(
            *(
                loop.create_connection(
                    lambda: _Page(port, auth), "127.0.0.1", port, ssl=context
                )
                for _ in range(min(_AT_ONCE, windows - start))
            )
        )
    await asyncio.sleep(_LIMIT_S)


if __name__ == "__main__":
    main()
