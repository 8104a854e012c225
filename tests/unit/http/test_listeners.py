"""Errors of listeners name the setting and a fix."""

import asyncio
import socket
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from bridge.http.listeners import serve
from bridge.http.listening_sockets import address_error
from bridge.metrics import Metrics
from bridge.settings.load import load_settings
from bridge.trusted_proxies import TrustedProxies
from bridge.wiring import operator_listener
from tests.conftest import SLOW_FACTOR


async def test_an_address_of_another_machine_is_a_problem_of_the_host() -> None:
    """The port setting would be the wrong place to look."""
    problem = (
        "BRIDGE_HOST: 192.0.2.1 is not an address of this machine; 127.0.0.1 accepts"
    )
    async with AsyncExitStack() as stack:
        with pytest.raises(OSError, match=problem):
            await serve(
                stack,
                web.Application(),
                ("192.0.2.1",),
                0,
                "BRIDGE_PORT",
                site=web.SockSite,
            )


def test_an_unknown_name_is_a_problem_of_the_host() -> None:
    """The error is made up, because resolving takes long in some networks."""
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    text = str(address_error(unknown, "BRIDGE_OPERATOR_PORT", "localhst", 8081))

    assert text.startswith("BRIDGE_OPERATOR_HOST: the name localhst cannot be resolved")


async def test_a_port_that_is_taken_is_reported_with_a_fix() -> None:
    """This is the most frequent error."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with AsyncExitStack() as stack:
            with pytest.raises(
                OSError, match=f"BRIDGE_PORT: 127.0.0.1:{port} is taken"
            ):
                await serve(
                    stack,
                    web.Application(),
                    ("127.0.0.1",),
                    port,
                    "BRIDGE_PORT",
                    site=web.SockSite,
                )


def test_a_low_port_needs_privileges() -> None:
    """The error is made up, because root and some machines may use the port."""
    refused = PermissionError(13, "Permission denied")

    text = str(address_error(refused, "BRIDGE_PORT", "127.0.0.1", 80))

    assert text.startswith("BRIDGE_PORT: 127.0.0.1:80 needs root privileges; choose")


async def test_the_operator_port_waits_for_a_request_only_until_its_deadline() -> None:
    """Connections that send one byte would hold the descriptors of the operators."""
    metrics = Metrics()
    settings = load_settings(
        {
            "jwt_secret": "a-32-byte-secret-for-these-tests",
            "connect_timeout": "200ms",
            "inbox": "memory:",
        }
    )
    listener = operator_listener(settings, TrustedProxies(), metrics)
    async with AsyncExitStack() as stack:
        url = URL(
            await serve(
                stack,
                web.Application(),
                ("127.0.0.1",),
                0,
                "BRIDGE_OPERATOR_PORT",
                site=listener.site,
            )
        )
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"G")
        async with asyncio.timeout(10 * SLOW_FACTOR):
            assert await _read_to_end(reader) == b""
        writer.close()
        assert metrics.total("bridge_connections_refused", reason="no_request") == 1

        async with aiohttp.ClientSession() as http, http.get(url) as response:
            assert response.status == 404  # of the empty application


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""
