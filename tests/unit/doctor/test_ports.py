"""The doctor and the addresses of the two doors."""

import socket
from contextlib import AsyncExitStack

import pytest
from aiohttp import web
from yarl import URL

from bridge.doctor.ports import port_findings
from bridge.doctor.results import Finding, Verdict
from bridge.http.listeners import serve
from bridge.http.problems import harden
from bridge.settings.load import load_settings


async def looked_at(**settings: object) -> dict[str, Finding]:
    given = {"auth": "open", "port": 0, "operator_port": 0} | settings
    return {
        finding.subject: finding
        async for finding in port_findings(load_settings(given))
    }


async def test_a_port_that_another_program_has_is_told_before_the_start() -> None:
    """Else `bridge check` is content with all, and `bridge run` ends at once."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = await looked_at(port=port)
    free = await looked_at(port=port)

    assert taken["BRIDGE_PORT"].verdict is Verdict.WRONG
    assert "is taken by another process; stop it or choose" in taken["BRIDGE_PORT"].text
    assert free["BRIDGE_PORT"] == Finding(
        "BRIDGE_PORT", Verdict.OK, f"127.0.0.1:{port} is free"
    )
    assert "BRIDGE_OPERATOR_PORT" not in free  # 0 is any free one


async def test_a_port_that_a_bridge_has_already_is_well() -> None:
    """`bridge check` is called beside a running bridge more often than before one."""
    app = web.Application()
    app.on_response_prepare.append(harden)
    async with AsyncExitStack() as stack:
        url = URL(await serve(stack, app, "127.0.0.1", 0, "BRIDGE_PORT"))
        found = await looked_at(port=url.port)

    assert found["BRIDGE_PORT"].verdict is Verdict.OK
    assert found["BRIDGE_PORT"].text.startswith("a bridge listens on ")


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("192.0.2.1", "192.0.2.1 is no address of this machine"),
        ("no.such.invalid", "no.such.invalid is no name that is known here"),
    ],
)
async def test_an_address_that_cannot_be_had_is_told(host: str, problem: str) -> None:
    """With the sentence that the start would end with."""
    found = await looked_at(operator_host=host, operator_port=9)

    assert found["BRIDGE_OPERATOR_HOST"].verdict is Verdict.WRONG
    assert found["BRIDGE_OPERATOR_HOST"].text.startswith(problem)
