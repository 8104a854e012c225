"""Opening a door: one application on one address, or a sentence why not."""

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
    Where a started bridge listens, with the real ports.

    A worker of several has no operator URL: its door is for the supervisor alone.
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
    site: Callable[[web.BaseRunner, str, int], web.BaseSite] = web.TCPSite,
) -> str:
    """
    Serve `app` until `stack` is closed, and return its URL with the real port.

    `site` makes what listens, from the runner, host and port.

    Raises:
        OSError: If the address cannot be had; its text names `setting`.

    """
    runner = await _runner(stack, app)
    try:
        await site(runner, host, port).start()
    except OSError as exc:
        raise address_error(exc, setting, host, port) from exc
    address: Sequence[object] = runner.addresses[0]
    shown = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
    return f"http://{shown}:{address[1]}"


def address_error(exc: OSError, setting: str, host: str, port: int) -> OSError:
    """Return `exc`, that an address cannot be had, in words of the settings."""
    match exc.errno:
        case errno.EADDRINUSE:
            problem = (
                "is taken by another process; "
                "stop it or choose another port (0 = any free one)"
            )
        case errno.EACCES:
            problem = "is not for ordinary users; choose a port from 1024 on"
        case errno.EADDRNOTAVAIL:
            return _host_error(setting, f"{host} is no address of this machine")
        case _ if isinstance(exc, socket.gaierror):
            return _host_error(setting, f"{host} is no name that is known here")
        case _:
            problem = f"cannot be had: {exc.strerror}"
    return OSError(f"{setting}: {host}:{port} {problem}")


def _host_error(setting: str, problem: str) -> OSError:
    fix = "127.0.0.1 is for this machine alone, 0.0.0.0 for all that reach it"
    return OSError(f"{setting.replace('_PORT', '_HOST')}: {problem}; {fix}")


async def serve_privately(
    stack: AsyncExitStack, app: web.Application, path: str
) -> None:
    """
    Serve `app` on a socket in the file system until `stack` is closed.

    Raises:
        OSError: If there can be no socket at `path`.

    """
    runner = await _runner(stack, app)
    await web.UnixSite(runner, path).start()


async def _runner(stack: AsyncExitStack, app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(
        app,
        access_log=None,  # its lines hold the query, and that a session id
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=1.0,  # windows were told to go before
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner
