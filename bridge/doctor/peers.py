"""Who else is asked over HTTP: the issuer's key set, and the bridge that runs already."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import aiohttp
from pydantic import ValidationError
from yarl import URL

from bridge.amqp.management import read_all
from bridge.auth.key_set import KeySet
from bridge.core.contracts.operator.overview import Overview
from bridge.doctor.results import Finding, Verdict, note, ok, unknown, wrong
from bridge.enums import ExitCode, Refusal
from bridge.errors import KeysUnavailableError
from bridge.settings.model import Settings

_WITHIN_S: Final = 5.0
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_NAMED: Final = 5
_REFUSED: Final = (
    f'bridge_windows_refused_total{{code="{Refusal.ORIGIN_NOT_ALLOWED}"}} '
)


async def key_set_finding(settings: Settings) -> Finding | None:
    """Fetch the key set, as the first token would; `None` if there is none."""
    if settings.jwks_url is None or settings.auth != "jwt":
        return None
    keys = KeySet(settings.jwks_url)
    await keys.open()
    try:
        fitting = {
            name: len(await keys.find(name, kid=None))
            for name in settings.jwt_algorithms
            if not name.startswith("HS")
        }
    except KeysUnavailableError as exc:
        return wrong("key set", str(exc), code=ExitCode.UNREACHABLE)
    finally:
        await keys.close()
    without = [name for name, count in fitting.items() if not count]
    if without:
        text = f"holds no key for {', '.join(without)} of BRIDGE_JWT_ALGORITHMS"
        return wrong(
            "key set", text, mend="BRIDGE_JWT_ALGORITHMS=…, as the issuer signs"
        )
    counts = ", ".join(f"{count} for {name}" for name, count in fitting.items())
    return ok("key set", f"can be fetched; keys: {counts}")


def reachable_host(host: str) -> str:
    """Return where one asks whoever listens on `host`."""
    return _EVERYWHERE.get(host, host)


async def running_bridge_findings(settings: Settings) -> list[Finding]:
    """Ask the bridge that runs with these settings, if one does."""
    if settings.operator_port == 0:
        text = "BRIDGE_OPERATOR_PORT is 0, so it cannot be found"
        return [unknown("running bridge", text)]
    host = reachable_host(settings.operator_host)
    root = URL.build(scheme="http", host=host, port=settings.operator_port)
    token = settings.operator_token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    findings: list[Finding] = []
    try:
        async with asyncio.timeout(_WITHIN_S), aiohttp.ClientSession() as session:
            # The token goes to whoever listens there only once it has shown to be ours.
            async with session.get(root / "health/ready") as response:
                if response.headers.get("Server") != "bridge":
                    text = f"something else listens on {root.host}:{root.port}"
                    return [unknown("running bridge", text)]
                findings.append(await _readiness_finding(response))
            async with session.get(root / "metrics", headers=headers) as response:
                findings.append(await _origins_finding(response))
            if findings[-1].verdict is Verdict.NOTE:
                async with session.get(root / "api/overview", headers=headers) as told:
                    findings[-1] = await _with_names(findings[-1], told)
    except (aiohttp.ClientError, TimeoutError):
        text = (
            f"none answers at {root.host}:{root.port}, which would tell refused origins"
        )
        findings.append(unknown("running bridge", text))
    return findings


async def _with_names(finding: Finding, response: aiohttp.ClientResponse) -> Finding:
    """Name the origins; anybody can write that header, so nothing of it is believed."""
    try:
        refused = Overview.model_validate_json(await read_all(response)).refused_origins
    except ValidationError:  # an older bridge runs there
        return finding
    names = [
        f"{'none told' if origin.origin is None else ascii(origin.origin)} "
        f"({origin.count}, last {_utc(origin.last_s)})"
        for origin in refused[:_NAMED]
    ]
    if len(refused) > _NAMED:
        names.append(f"and {len(refused) - _NAMED} more")
    return replace(finding, text=f"{finding.text}: {', '.join(names)}")


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


async def _readiness_finding(response: aiohttp.ClientResponse) -> Finding:
    if response.status == 200:
        return ok("running bridge", "is ready")
    reasons: list[str] = (await response.json())["reasons"]
    return wrong("running bridge", f"is not ready: {', '.join(reasons)}")


async def _origins_finding(response: aiohttp.ClientResponse) -> Finding:
    if response.status != 200:
        text = f"/metrics is answered with status {response.status}"
        return unknown(
            "origins", text, mend="set BRIDGE_OPERATOR_TOKEN as the bridge has it"
        )
    text = (await read_all(response)).decode(errors="replace")
    counts = [
        line.removeprefix(_REFUSED)
        for line in text.splitlines()
        if line.startswith(_REFUSED)
    ]
    refused = int(float(counts[0])) if counts else 0
    if refused:
        told = (
            f"{refused} windows were refused for their origin since the bridge started"
        )
        return note("origins", told, mend="BRIDGE_ALLOWED_ORIGINS=…, if they are yours")
    return ok("origins", "none was refused since the bridge started")
