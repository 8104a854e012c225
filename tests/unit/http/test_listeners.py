"""A door that cannot be opened: which setting it is, and what would do."""

import socket
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from bridge.http.listeners import address_error, serve


async def test_an_address_that_is_not_ours_is_told_of_the_host() -> None:
    """Who looks at the port then looks in vain."""
    problem = "BRIDGE_HOST: 192.0.2.1 is no address of this machine; 127.0.0.1 is for"
    async with AsyncExitStack() as stack:
        with pytest.raises(OSError, match=problem):
            await serve(stack, web.Application(), "192.0.2.1", 0, "BRIDGE_PORT")


def test_a_name_that_is_not_known_is_told_of_the_host_too() -> None:
    """Not looked up: some networks take their time to say so."""
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    text = str(address_error(unknown, "BRIDGE_OPERATOR_PORT", "localhst", 8081))

    assert text.startswith("BRIDGE_OPERATOR_HOST: localhst is no name that is known")


async def test_a_port_that_is_taken_is_told_with_the_ways_out() -> None:
    """The most usual one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with AsyncExitStack() as stack:
            with pytest.raises(
                OSError, match=f"BRIDGE_PORT: 127.0.0.1:{port} is taken"
            ):
                await serve(stack, web.Application(), "127.0.0.1", port, "BRIDGE_PORT")


def test_a_low_port_is_told_as_such() -> None:
    """Not tried: on some machines, and for root, it is allowed."""
    refused = PermissionError(13, "Permission denied")

    text = str(address_error(refused, "BRIDGE_PORT", "127.0.0.1", 80))

    assert text.startswith(
        "BRIDGE_PORT: 127.0.0.1:80 is not for ordinary users; choose"
    )
