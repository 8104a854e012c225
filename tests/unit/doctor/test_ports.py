"""The check of the two listening addresses."""

import socket
from contextlib import AsyncExitStack

import pytest
from aiohttp import web
from yarl import URL

from bridge.doctor.listeners import check_ports
from bridge.doctor.results import CheckResult, CheckStatus
from bridge.http.listeners import serve
from bridge.http.responses import harden
from bridge.settings.load import load_settings


async def port_results(**settings: object) -> dict[str, CheckResult]:
    given = {"auth": "open", "port": 0, "operator_port": 0} | settings
    return {
        result.subject: result async for result in check_ports(load_settings(given))
    }


async def test_a_port_of_another_program_fails_the_check() -> None:
    """Without this check, `bridge check` would pass and `bridge run` would exit at once."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = await port_results(port=port)
    free = await port_results(port=port)

    assert taken["BRIDGE_PORT"].status is CheckStatus.FAIL
    assert "is taken by another process; stop it or choose" in taken["BRIDGE_PORT"].text
    assert free["BRIDGE_PORT"] == CheckResult(
        "BRIDGE_PORT", CheckStatus.OK, f"127.0.0.1:{port} is free"
    )
    assert "BRIDGE_OPERATOR_PORT" not in free  # 0 means any free port


async def test_a_port_of_a_running_bridge_passes_the_check() -> None:
    """`bridge check` usually runs beside a running bridge."""
    app = web.Application()
    app.on_response_prepare.append(harden)
    async with AsyncExitStack() as stack:
        url = URL(
            await serve(stack, app, ("127.0.0.1",), 0, "BRIDGE_PORT", site=web.SockSite)
        )
        results = await port_results(port=url.port)

    assert results["BRIDGE_PORT"].status is CheckStatus.OK
    assert results["BRIDGE_PORT"].text.startswith("a bridge already listens on ")


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("192.0.2.1", "192.0.2.1 is not an address of this machine"),
        ("no.such.invalid", "the name no.such.invalid cannot be resolved"),
    ],
)
async def test_an_address_that_cannot_be_bound_fails_the_check(
    host: str, problem: str
) -> None:
    """The text is the error with which `bridge run` would exit."""
    results = await port_results(operator_host=host, operator_port=9)

    assert results["BRIDGE_OPERATOR_HOST"].status is CheckStatus.FAIL
    assert results["BRIDGE_OPERATOR_HOST"].text.startswith(problem)
