"""Listeners: serve an application on a TCP address or a Unix socket."""

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from aiohttp import web

_KEEPALIVE_S: Final = 75.0


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
    host: str,
    port: int,
    setting: str,
    *,
    site: Callable[[web.BaseRunner, str, int], web.BaseSite],
) -> str:
    """
    Serve `app` until `stack` is closed, and return its URL with the real port.

    Args:
        stack: Stops the listener when it is closed.
        app: The application.
        host: The host name or address to listen on.
        port: The port; 0 for any free one.
        setting: The setting of the port, for error texts.
        site: Creates the listening site from the runner, host and port.

    Raises:
        OSError: If the address cannot be used; the text names `setting`.

    """
    runner = await _runner(stack, app)
    try:
        await site(runner, host, port).start()
    except OSError as exc:
        raise address_error(exc, setting, host, port) from exc
    address: Sequence[object] = runner.addresses[0]
    return http_url(str(address[0]), address[1])


def http_url(host: str, port: object) -> str:
    """Return the URL of a host and port; an IPv6 address gets its brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def loopback_of(host: str) -> str:
    """Return where a program of this machine reaches a listener on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def address_error(exc: OSError, setting: str, host: str, port: int) -> OSError:
    """Return an error that explains `exc` in terms of the setting of the address."""
    match exc.errno:
        case errno.EADDRINUSE:
            problem = (
                "is taken by another process; "
                "stop it or choose another port (0 = any free one)"
            )
        case errno.EACCES:
            problem = "needs root privileges; choose a port from 1024 on"
        case errno.EADDRNOTAVAIL:
            return _host_error(setting, f"{host} is not an address of this machine")
        case _ if isinstance(exc, socket.gaierror):
            return _host_error(setting, f"the name {host} cannot be resolved")
        case _:
            problem = f"cannot be used: {exc.strerror}"
    return OSError(f"{setting}: {host}:{port} {problem}")


def _host_error(setting: str, problem: str) -> OSError:
    fix = (
        "127.0.0.1 accepts connections from this machine only, 0.0.0.0 from everywhere"
    )
    return OSError(f"{setting.replace('_PORT', '_HOST')}: {problem}; {fix}")


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
        shutdown_timeout=1.0,  # windows are closed before the listener
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner
