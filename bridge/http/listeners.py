"""Listeners: serve an application on a TCP address or a Unix socket."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from bridge.core.listen_hosts import unix_path
from bridge.http.listening_sockets import bind_sockets

_KEEPALIVE_S: Final = 75.0
# Of the operator's API, where a request may name 1,000 users.
OPERATOR_LINE_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Listening:
    """
    The URLs of a started bridge, with the real ports.

    The operator URL of a worker process is empty: only the supervisor can reach its
    operator API, over a Unix socket.
    """

    public_url: str
    operator_url: str


async def serve(
    stack: AsyncExitStack,
    app: web.Application,
    hosts: Sequence[str],
    port: int,
    setting: str,
    *,
    site: Callable[[web.BaseRunner, socket.socket], web.BaseSite],
    is_shared: bool = False,
    is_tls: bool = False,
) -> str:
    """
    Serve `app` until `stack` is closed, and return the URL of the first host.

    Args:
        stack: Stops the listener when it is closed.
        app: The application.
        hosts: As in `bind_sockets`.
        port: The port; 0 for any free one.
        setting: The setting of the port, for error texts.
        site: Creates the listening site from the runner and a bound socket.
        is_shared: Whether other processes listen on the same port.
        is_tls: Whether the sites of TCP addresses use TLS.

    Raises:
        OSError: If an address cannot be used; the text names `setting`.

    """
    runner = await _runner(stack, app)
    sockets = await asyncio.to_thread(
        bind_sockets, hosts, port, setting, is_shared=is_shared
    )
    for path in filter(None, map(unix_path, hosts)):
        stack.push_async_callback(asyncio.to_thread, _unlink, path)
    for one in sockets:
        await site(runner, one).start()
    return socket_url(sockets[0], is_tls=is_tls)


def socket_url(bound: socket.socket, *, is_tls: bool = False) -> str:
    """Return the URL of a bound socket; `unix:PATH` for a Unix socket."""
    address = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        return f"unix:{address}"
    return http_url(*address[:2], is_tls=is_tls)


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)  # noqa: PTH108 - the path is a str


def http_url(host: str, port: object, *, is_tls: bool = False) -> str:
    """Return the URL of a host and port; an IPv6 address gets its brackets."""
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def serve_on_unix_socket(
    stack: AsyncExitStack, app: web.Application, path: str
) -> None:
    """
    Serve `app` on a Unix socket at `path` until `stack` is closed.

    Raises:
        OSError: If the socket cannot be created.

    """
    runner = await _runner(stack, app)
    await web.UnixSite(runner, path).start()


async def _runner(stack: AsyncExitStack, app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(
        app,
        access_log=None,  # it would log the query, which contains session ids
        keepalive_timeout=_KEEPALIVE_S,
        max_line_size=OPERATOR_LINE_MAX_BYTES,  # a `Listener` has its own limit
        shutdown_timeout=1.0,  # windows are closed before the listener
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner
