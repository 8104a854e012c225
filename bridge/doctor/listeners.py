"""Check the two listening addresses, and the bridge that already runs there."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import aiohttp
from pydantic import ValidationError
from yarl import URL

from bridge.amqp.management import read_all
from bridge.core.contracts.operator.overview import Overview
from bridge.core.listen_hosts import local_host, tcp_hosts
from bridge.doctor.results import CheckResult, CheckStatus, fail, ok, skip, warn
from bridge.enums import Refusal
from bridge.http.listening_sockets import bind_sockets
from bridge.settings.model import Settings

_TIMEOUT_S: Final = 5.0
_ORIGINS_SHOWN: Final = 5
_UNREADABLE_METRIC: Final = "bridge_forwarded_unreadable_total "
_REFUSED_METRIC: Final = (
    f'bridge_windows_refused_total{{code="{Refusal.ORIGIN_NOT_ALLOWED}"}} '
)


async def check_ports(settings: Settings) -> AsyncIterator[CheckResult]:
    """Check that both addresses are free, or that our own bridge listens. Opens no port."""
    found = await _find_bridge(settings)
    scheme = "https" if settings.tls_cert else "http"
    addresses = (
        ("BRIDGE_PORT", settings.host, settings.port, scheme),
        (
            "BRIDGE_OPERATOR_PORT",
            settings.operator_host,
            settings.operator_port,
            "http",
        ),
    )
    for setting, hosts, port, own_scheme in addresses:
        for host in tcp_hosts(hosts) if port else ():  # 0 means any free port
            is_public = setting == "BRIDGE_PORT"
            its = found.with_public_port(port) if is_public else found
            yield await _check_port(setting, host, port, its, scheme=own_scheme)


@dataclass(frozen=True, slots=True)
class _FoundBridge:
    """
    The bridge on the operator port of the settings.

    Attributes:
        problem: Why it is not the one with these settings; ``None`` if it is, or if that is
            not known.
        unknown: Why it is not known whether it is; ``None`` if it is known.
        port: Its public port; ``None`` if that is not known.

    """

    problem: str | None = None
    unknown: str | None = None
    port: int | None = None

    def with_public_port(self, port: int) -> "_FoundBridge":
        """Return what is known of the bridge on this public port."""
        if self.port in {None, port}:
            return self
        problem = f"the one with these settings has the public port {self.port}"
        return _FoundBridge(problem)


async def _find_bridge(settings: Settings) -> _FoundBridge:
    """Look for the bridge of these settings on their operator port."""
    host = local_host(settings.operator_host)
    port, token = settings.operator_port, settings.operator_token
    if host is None or port == 0:
        return _FoundBridge(unknown="its operator port is not known")
    place = f"BRIDGE_OPERATOR_PORT ({host}:{port})"
    if not await _is_bridge(host, port):
        return _FoundBridge(f"none answers at {place}")
    if token is None:
        return _FoundBridge(unknown="BRIDGE_OPERATOR_TOKEN is not set")
    return await _identify(
        _url(host, port), place, token.get_secret_value(), settings.namespace
    )


async def _identify(root: URL, place: str, token: str, namespace: str) -> _FoundBridge:
    """Ask a bridge for its namespace and its public port."""
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            aiohttp.ClientSession(headers=headers) as session,
            session.get(root / "api/overview") as response,
        ):
            if response.status in {401, 403}:
                text = f"the one at {place} has another BRIDGE_OPERATOR_TOKEN"
                return _FoundBridge(text)
            overview = Overview.model_validate_json(await read_all(response))
    except (aiohttp.ClientError, TimeoutError, ValidationError):
        return _FoundBridge(unknown=f"the one at {place} does not describe itself")
    if overview.namespace != namespace:
        text = f"the one at {place} has the namespace {overview.namespace}"
        return _FoundBridge(text)
    return _FoundBridge(port=overview.port or None)


async def is_running(settings: Settings) -> bool:
    """Return whether the bridge of these settings listens on their operator port."""
    port = settings.operator_port
    host = local_host(settings.operator_host)
    if port == 0 or host is None:
        return False
    return (await _find_bridge(settings)).problem is None


async def check_running_bridge(settings: Settings) -> list[CheckResult]:
    """Ask the bridge that runs with these settings for readiness and refused origins."""
    host = local_host(settings.operator_host)
    if host is None or settings.operator_port == 0:
        text = "BRIDGE_OPERATOR_PORT is 0, so its address is not known"
        if host is None:
            text = "BRIDGE_OPERATOR_HOST is a Unix socket, which is not checked"
        return [skip("running bridge", text)]
    root = _url(host, settings.operator_port)
    token = settings.operator_token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    results: list[CheckResult] = []
    try:
        async with asyncio.timeout(_TIMEOUT_S), aiohttp.ClientSession() as session:
            # Another program may listen on this port. It must not receive the token, so
            # the first request goes without.
            async with session.get(root / "health/ready") as response:
                if response.headers.get("Server") != "bridge":
                    text = f"another program listens on {root.host}:{root.port}"
                    return [skip("running bridge", text)]
                results.append(await _check_readiness(response))
            async with session.get(root / "metrics", headers=headers) as response:
                results += await _check_metrics(response)
            origins = results[-1]
            if origins.status is CheckStatus.WARN:
                async with session.get(root / "api/overview", headers=headers) as reply:
                    results[-1] = await _with_origins(origins, reply)
    except (aiohttp.ClientError, TimeoutError):
        text = (
            f"no bridge answers at {root.host}:{root.port}; refused origins are unknown"
        )
        results.append(skip("running bridge", text))
    return results


def _url(host: str, port: int, *, scheme: str = "http") -> URL:
    return URL.build(scheme=scheme, host=local_host((host,)) or host, port=port)


async def _check_port(
    setting: str, host: str, port: int, its: _FoundBridge, *, scheme: str
) -> CheckResult:
    """
    Check one address.

    Args:
        setting: The setting of the port.
        host: The host.
        port: The port.
        its: What is known of a bridge that listens there.
        scheme: "https" if our own bridge speaks TLS there.

    """
    try:
        await asyncio.to_thread(_try_bind, setting, host, port)
    except OSError as exc:
        if await _is_bridge(host, port, scheme=scheme):
            return _bridge_result(setting, host, port, its)
        # The error names the setting of the host instead, if the host is the problem.
        subject, _, text = str(exc).partition(": ")
        return fail(subject, text, fix=_port_fix(setting, subject, port))
    return ok(setting, f"{host}:{port} is free")


def _bridge_result(
    setting: str, host: str, port: int, its: _FoundBridge
) -> CheckResult:
    fix = _port_fix(setting, setting, port)
    if its.problem is not None:
        text = f"another bridge listens on {host}:{port}: {its.problem}"
        return fail(setting, text, fix=fix)
    if its.unknown is not None:
        text = (
            f"a bridge listens on {host}:{port}, and whether it is the one with these "
            f"settings is not known: {its.unknown}"
        )
        return warn(setting, text, fix=fix)
    text = f"the running bridge listens on {host}:{port}; stop it to start another"
    return ok(setting, text)


def _port_fix(setting: str, subject: str, port: int) -> str:
    if subject != setting:
        return f"{subject}=127.0.0.1, or 0.0.0.0 for all addresses of this machine"
    return (
        f"{setting}=PORT, or stop the program that `ss -ltnp 'sport = :{port}'` shows"
    )


def _try_bind(setting: str, host: str, port: int) -> None:
    """Bind the address as the server does, without listening, and release it."""
    for one in bind_sockets((host,), port, setting):
        one.close()


async def _is_bridge(host: str, port: int, *, scheme: str = "http") -> bool:
    url = _url(host, port, scheme=scheme) / "health/live"
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            aiohttp.ClientSession() as session,
            # Its certificate names the host that pages use. Nothing secret is sent.
            session.get(url, ssl=False) as response,
        ):
            return response.headers.get("Server") == "bridge"
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _check_readiness(response: aiohttp.ClientResponse) -> CheckResult:
    answer = await response.json()
    if response.status == 200:
        warnings: list[str] = answer.get("warnings", [])
        if warnings:
            text = f"is ready; {'; '.join(warnings)}"
            fix = (
                "see docs/operations.md, which has a section for each of these warnings"
            )
            return warn("running bridge", text, fix=fix)
        return ok("running bridge", "is ready")
    reasons: list[str] = answer["reasons"]
    text = f"is not ready: {', '.join(reasons)}"
    fix = "see the log of bridge run; it becomes ready when these causes are gone"
    return fail("running bridge", text, fix=fix)


async def _check_metrics(response: aiohttp.ClientResponse) -> list[CheckResult]:
    """Return the result for the headers of proxies, if there is one, and for origins."""
    if response.status != 200:
        text = f"/metrics answered with status {response.status}"
        fix = "set BRIDGE_OPERATOR_TOKEN to the token of the running bridge"
        return [skip("origins", text, fix=fix)]
    metrics = (await read_all(response)).decode(errors="replace")
    results: list[CheckResult] = []
    if unreadable := _sample(metrics, _UNREADABLE_METRIC):
        text = (
            f"{unreadable} requests of BRIDGE_TRUSTED_PROXIES had an X-Forwarded-For that "
            "cannot be read since the bridge started; their clients count under the address of the proxy"
        )
        fix = "let the proxy append an address, with or without a port"
        results.append(warn("X-Forwarded-For", text, fix=fix))
    if refused := _sample(metrics, _REFUSED_METRIC):
        text = f"windows refused for their origin since the bridge started: {refused}"
        fix = "BRIDGE_ALLOWED_ORIGINS=…, if these origins are yours"
        return [*results, warn("origins", text, fix=fix)]
    return [*results, ok("origins", "none was refused since the bridge started")]


def _sample(metrics: str, start: str) -> int:
    """Return the value of the line that starts with `start`; 0 if there is none."""
    counts = [
        line.removeprefix(start)
        for line in metrics.splitlines()
        if line.startswith(start)
    ]
    return int(float(counts[0])) if counts else 0


async def _with_origins(
    result: CheckResult, response: aiohttp.ClientResponse
) -> CheckResult:
    """Add the refused origins. Clients choose that header, so it is printed as ASCII."""
    try:
        refused = Overview.model_validate_json(await read_all(response)).refused_origins
    except ValidationError:  # an older bridge
        return result
    names = [
        f"{'no origin' if origin.origin is None else ascii(origin.origin)} "
        f"({origin.count}, last "
        f"{datetime.fromtimestamp(origin.last_s, tz=UTC):%Y-%m-%d %H:%M:%S UTC})"
        for origin in refused[:_ORIGINS_SHOWN]
    ]
    if len(refused) > _ORIGINS_SHOWN:
        names.append(f"and {len(refused) - _ORIGINS_SHOWN} more")
    return replace(result, text=f"{result.text}; {', '.join(names)}")
