"""One look after the other, from the settings to the peers."""

import asyncio
from collections.abc import AsyncIterator

from yarl import URL

from bridge.core.broker_names import BrokerNames
from bridge.doctor.broker import Patient, broker_findings
from bridge.doctor.inbox import disk_findings, inbox_finding
from bridge.doctor.peers import key_set_finding, running_bridge_findings
from bridge.doctor.ports import port_findings
from bridge.doctor.redis import redis_findings
from bridge.doctor.results import Finding, ok, wrong
from bridge.doctor.secrets import secret_findings, setting_findings
from bridge.doctor.shards import look_at_shards
from bridge.doctor.vhost import vhost_findings
from bridge.enums import ExitCode
from bridge.errors import ConfigError
from bridge.settings.model import Settings
from bridge.wiring import (
    broker_address,
    has_own_inbox,
    inbox_of,
    management_of,
    schemas_of,
    shard_plan,
)


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """
    Look at all that `bridge run` needs, and change nothing.

    Cancellation: safe; what was opened is closed.
    """
    yield ok(
        "settings", f"auth {settings.auth}, inbox {inbox_of(settings).description}"
    )
    for finding in (*setting_findings(settings), *secret_findings(settings)):
        yield finding
    for finding in await asyncio.to_thread(_schema_findings, settings):
        yield finding
    async for finding in _broker_findings(settings):
        yield finding
    yield await inbox_finding(settings)
    async for finding in redis_findings(settings):
        yield finding
    for finding in await asyncio.to_thread(lambda: list(disk_findings(settings))):
        yield finding
    key_set = await key_set_finding(settings)
    if key_set is not None:
        yield key_set
    async for finding in port_findings(settings):
        yield finding
    for finding in await running_bridge_findings(settings):
        yield finding


async def _broker_findings(settings: Settings) -> AsyncIterator[Finding]:
    names = BrokerNames(settings.namespace)
    address = broker_address(settings)
    shards = await look_at_shards(
        address, shard_plan(settings), has_own_inbox=has_own_inbox(settings)
    )
    wanted = shards.wanted
    is_reached = False
    urls = [URL(url) for url in address.urls]
    for number, url in enumerate(urls, start=1):
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        patient = Patient(
            url=url,
            subject=f"broker {number} ({url.host}:{port})",
            names=names,
            wanted=wanted,
            timeout_s=settings.broker_timeout,
        )
        was_reached = is_reached
        async for finding in broker_findings(patient, looks_closer=not was_reached):
            is_reached = is_reached or finding.exit_code != ExitCode.UNREACHABLE
            yield finding
    if is_reached:
        for finding in shards.findings:
            yield finding
        async for finding in vhost_findings(
            management_of(settings, timeout_s=settings.broker_timeout),
            wanted,
            names,
            prefetch_count=settings.prefetch,
            clock_limit_s=settings.jwt_leeway,
        ):
            yield finding


def _schema_findings(settings: Settings) -> list[Finding]:
    try:
        schemas = schemas_of(settings)
    except ConfigError as exc:
        return [
            wrong("schemas", problem, code=ExitCode.USAGE) for problem in exc.problems
        ]
    if schemas is None:
        return []
    return [ok("schemas", f"{len(schemas.schemas)} events have one")]
