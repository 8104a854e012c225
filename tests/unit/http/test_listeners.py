"""Errors of listeners name the setting and a fix."""

import socket
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from bridge.http.listeners import address_error, serve


async def test_an_address_of_another_machine_is_a_problem_of_the_host() -> None:
    """The port setting would be the wrong place to look."""
    problem = (
        "BRIDGE_HOST: 192.0.2.1 is not an address of this machine; 127.0.0.1 accepts"
    )
    async with AsyncExitStack() as stack:
        with pytest.raises(OSError, match=problem):
            await serve(stack, web.Application(), "192.0.2.1", 0, "BRIDGE_PORT")


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
                await serve(stack, web.Application(), "127.0.0.1", port, "BRIDGE_PORT")


def test_a_low_port_needs_privileges() -> None:
    """The error is made up, because root and some machines may use the port."""
    refused = PermissionError(13, "Permission denied")

    text = str(address_error(refused, "BRIDGE_PORT", "127.0.0.1", 80))

    assert text.startswith("BRIDGE_PORT: 127.0.0.1:80 needs root privileges; choose")
