"""Bound sockets: both families, several hosts, and Unix sockets."""

import asyncio
import socket
import stat
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from bridge.http.listeners import serve
from bridge.http.listening_sockets import bind_sockets

HAS_IPV6 = Path("/proc/net/if_inet6").exists()


def bound_to(hosts: Sequence[str], stack: ExitStack) -> list[socket.socket]:
    """Bind and listen until `stack` is closed."""
    sockets = bind_sockets(hosts, 0, "BRIDGE_PORT")
    for one in sockets:
        stack.callback(one.close)
        one.listen()
    return sockets


def test_the_ipv6_wildcard_accepts_both_families() -> None:
    """An operator who asks for every address means IPv4 too."""
    with ExitStack() as stack:
        (bound,) = bound_to(("::",), stack)
        port = bound.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()


def test_several_hosts_have_the_same_port() -> None:
    """Also both wildcards, which some configurations list."""
    for hosts in (("127.0.0.1", "::1"), ("::", "0.0.0.0"), ("0.0.0.0", "::")):
        with ExitStack() as stack:
            sockets = bound_to(hosts, stack)
            (port,) = {one.getsockname()[1] for one in sockets}
            for host in ("127.0.0.1", "::1"):
                socket.create_connection((host, port), timeout=5).close()


def test_an_address_that_is_taken_releases_the_others() -> None:
    """The next attempt to start must not fail for another reason."""
    with ExitStack() as stack:
        (taken,) = bound_to(("127.0.0.1",), stack)
        port = taken.getsockname()[1]
        for _ in range(2):
            with pytest.raises(
                OSError, match=f"BRIDGE_PORT: 127.0.0.1:{port} is taken"
            ):
                bind_sockets(("127.0.0.2", "127.0.0.1"), port, "BRIDGE_PORT")


def test_a_unix_socket_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    """A process that is killed cannot remove it."""
    host = f"unix:{tmp_path}/bridge.sock"
    with ExitStack() as stack:
        bound_to((host,), stack)
    with ExitStack() as stack:
        bound_to((host,), stack)

        with pytest.raises(OSError, match=r"BRIDGE_HOST: unix:.* is taken"):
            bind_sockets((host,), 0, "BRIDGE_PORT")


def test_a_file_is_not_replaced_by_a_unix_socket(tmp_path: Path) -> None:
    """The path may be a mistake."""
    path = tmp_path / "notes"
    path.write_text("keep")

    with pytest.raises(OSError, match=r"BRIDGE_OPERATOR_HOST: unix:.* is taken"):
        bind_sockets((f"unix:{path}",), 0, "BRIDGE_OPERATOR_PORT")

    assert path.read_text() == "keep"


async def test_a_unix_socket_is_for_the_group_and_removed_at_the_end(
    tmp_path: Path,
) -> None:
    """A proxy runs as another user, and nothing should be left behind."""
    path = tmp_path / "bridge.sock"
    async with AsyncExitStack() as stack:
        url = await serve(
            stack,
            web.Application(),
            (f"unix:{path}",),
            0,
            "BRIDGE_PORT",
            site=web.SockSite,
        )
        assert url == f"unix:{path}"
        mode = await asyncio.to_thread(path.stat)
        assert stat.S_IMODE(mode.st_mode) == 0o660
    assert not path.exists()


async def test_a_port_may_have_tcp_and_unix_sockets(tmp_path: Path) -> None:
    """Pages come through the proxy, health checks over TCP."""
    path = tmp_path / "bridge.sock"
    async with AsyncExitStack() as stack:
        url = await serve(
            stack,
            web.Application(),
            ("127.0.0.1", f"unix:{path}"),
            0,
            "BRIDGE_PORT",
            site=web.SockSite,
        )
        for connector in (None, aiohttp.UnixConnector(str(path))):
            async with (
                aiohttp.ClientSession(connector=connector) as http,
                http.get(url if connector is None else "http://localhost") as response,
            ):
                assert response.status == 404
