"""The check of the two listening addresses."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest
from aiohttp import web
from yarl import URL

from bridge.doctor.listeners import check_ports
from bridge.doctor.results import CheckResult, CheckStatus
from bridge.http.listeners import serve
from bridge.http.responses import harden
from bridge.settings.load import load_settings

STOP: Final = "; stop it to start another"
TOKEN: Final = "operator-token-of-the-tests"
OVERVIEW: Final[dict[str, Any]] = {
    "version": "1",
    "started_s": 1.0,
    "ready": True,
    "reasons": [],
    "broker": {"connected": True, "version": None, "host": None},
    "inbox": {"store": "memory:", "problem": None},
    "windows": 0,
    "users": 0,
    "in_flight": 0,
    "totals": dict.fromkeys(
        (
            *("consumed", "emitted", "replayed", "dead"),
            *("retried", "expired", "published", "reconnects"),
        ),
        0,
    ),
    "age_s": None,
    "refused_origins": [],
}


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


@dataclass(frozen=True)
class Served:
    """A running bridge, as far as the check looks at it: its two ports."""

    port: int
    operator_port: int


@asynccontextmanager
async def bridge_app(
    *, namespace: str = "bridge", reported_port: int | None = None
) -> AsyncIterator[Served]:
    """Serve both ports of a bridge; it reports its real public port, or another one."""
    ports: list[int] = []

    async def overview(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        port = reported_port or ports[0]
        return web.json_response(OVERVIEW | {"namespace": namespace, "port": port})

    async with AsyncExitStack() as stack:
        for _ in range(2):
            app = web.Application()
            app.on_response_prepare.append(harden)
            app.router.add_get("/api/overview", overview)
            url = await serve(
                stack, app, ("127.0.0.1",), 0, "BRIDGE_PORT", site=web.SockSite
            )
            ports.append(URL(url).port or 0)
        yield Served(*ports)


async def test_the_ports_of_the_running_bridge_pass_the_check() -> None:
    """`bridge check` usually runs beside a running bridge."""
    async with bridge_app() as served:
        results = await port_results(
            port=served.port, operator_port=served.operator_port, operator_token=TOKEN
        )

    texts = {name: result.text for name, result in results.items()}
    assert texts == {
        "BRIDGE_PORT": f"the running bridge listens on 127.0.0.1:{served.port}{STOP}",
        "BRIDGE_OPERATOR_PORT": f"the running bridge listens on 127.0.0.1:{served.operator_port}{STOP}",
    }
    assert {result.status for result in results.values()} == {CheckStatus.OK}


@pytest.mark.parametrize(
    ("settings", "reported_port", "problem"),
    [
        ({"namespace": "other"}, None, "has the namespace bridge"),
        ({"operator_token": TOKEN[::-1]}, None, "has another BRIDGE_OPERATOR_TOKEN"),
        ({"operator_port": 1}, None, "none answers at BRIDGE_OPERATOR_PORT"),
        ({}, 4711, "the one with these settings has the public port 4711"),
    ],
)
async def test_the_public_port_of_another_bridge_fails_the_check(
    settings: dict[str, object], reported_port: int | None, problem: str
) -> None:
    """`bridge run` with these settings would exit at once: the port is taken."""
    async with bridge_app(reported_port=reported_port) as served:
        given = {
            "port": served.port,
            "operator_port": served.operator_port,
            "operator_token": TOKEN,
        }
        results = await port_results(**(given | settings))

    found = results["BRIDGE_PORT"]
    assert found.status is CheckStatus.FAIL
    assert f"another bridge listens on 127.0.0.1:{served.port}: " in found.text
    assert problem in found.text
    assert found.fix.startswith("BRIDGE_PORT=PORT, or stop the program")


async def test_a_bridge_that_cannot_be_recognized_is_a_warning() -> None:
    """Without a token nothing tells the own bridge from another one."""
    async with bridge_app() as served:
        results = await port_results(
            port=served.port, operator_port=served.operator_port
        )

    assert results["BRIDGE_PORT"].status is CheckStatus.WARN
    assert results["BRIDGE_PORT"].text.endswith(
        "is not known: BRIDGE_OPERATOR_TOKEN is not set"
    )


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
