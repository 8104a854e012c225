"""Run all checks, from the settings to the bridge that already runs."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from yarl import URL

from bridge.amqp.topology import requests_topology
from bridge.core.broker_names import BrokerNames
from bridge.core.redis_address import is_redis
from bridge.doctor.broker import BrokerTarget, check_broker
from bridge.doctor.exchange_writers import check_exchange_writers
from bridge.doctor.inbox import check_disk, check_inbox
from bridge.doctor.key_set import check_key_set
from bridge.doctor.listeners import check_ports, check_running_bridge, is_running
from bridge.doctor.own_certificate import check_own_certificate
from bridge.doctor.permissions import vhost_of
from bridge.doctor.redis import check_redis
from bridge.doctor.results import CheckResult, fail, ok, warn
from bridge.doctor.secrets import check_exposure, check_secrets
from bridge.doctor.shards import check_shards
from bridge.doctor.vhost import check_vhost
from bridge.enums import ExitCode
from bridge.errors import ConfigError
from bridge.settings.model import Settings
from bridge.wiring import (
    broker_address,
    inbox_of,
    management_of,
    schemas_of,
    shard_plan,
)


async def run_checks(settings: Settings) -> AsyncIterator[CheckResult]:
    """
    Check everything that `bridge run` needs, and change nothing.

    Cancellation: safe; connections and files opened here are closed.
    """
    yield ok(
        "settings", f"auth {settings.auth}, inbox {inbox_of(settings).description}"
    )
    for result in (*check_exposure(settings), *check_secrets(settings)):
        yield result
    for result in await asyncio.to_thread(_check_schemas, settings):
        yield result
    is_bridge_running = await is_running(settings)
    async for result in _check_brokers(settings, is_running=is_bridge_running):
        yield result
    yield await check_inbox(settings, is_running=is_bridge_running)
    async for result in check_redis(settings):
        yield result
    for result in await asyncio.to_thread(lambda: list(check_disk(settings))):
        yield result
    key_set = await check_key_set(settings)
    if key_set is not None:
        yield key_set
    async for result in check_ports(settings):
        yield result
    async for result in check_own_certificate(settings):
        yield result
    for result in await check_running_bridge(settings):
        yield result


async def _check_brokers(
    settings: Settings, *, is_running: bool
) -> AsyncIterator[CheckResult]:
    names = BrokerNames(settings.namespace)
    address = broker_address(settings)
    shards = await check_shards(
        address,
        shard_plan(settings),
        has_own_inbox=not is_redis(settings.inbox),
        is_running=is_running,
    )
    wanted = shards.wanted
    if settings.page_events:
        requests = requests_topology(names).exchanges
        wanted = replace(wanted, exchanges=[*wanted.exchanges, *requests])
    is_reached = False
    for number, url in enumerate(map(URL, address.urls), start=1):
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        target = BrokerTarget(
            url=url,
            subject=f"broker {number} ({url.host}:{port})",
            names=names,
            wanted=wanted,
            timeout_s=settings.broker_timeout,
        )
        # All nodes of a cluster hold the same topology and permissions: the first node
        # that answers is asked for them.
        async for result in check_broker(target, with_topology=not is_reached):
            is_unreachable = result.exit_code == ExitCode.UNREACHABLE
            is_reached = is_reached or not is_unreachable
            yield result
    if not is_reached:
        return
    for result in shards.results:
        yield result
    management = management_of(settings, timeout_s=settings.broker_timeout)
    first = URL(address.urls[0])
    async for result in check_exchange_writers(
        management,
        names,
        own_user=first.user or "guest",
        vhost=vhost_of(first),
        has_requests=bool(settings.page_events),
    ):
        yield result
    async for result in check_vhost(
        management,
        shards.wanted,
        names,
        prefetch_count=settings.prefetch,
        clock_limit_s=settings.jwt_leeway,
    ):
        yield result


def _check_schemas(settings: Settings) -> list[CheckResult]:
    try:
        schemas = schemas_of(settings)
    except ConfigError as exc:
        fix = "correct the file, or move it out of the folder BRIDGE_SCHEMAS"
        return [
            fail("schemas", problem, fix=fix, exit_code=ExitCode.USAGE)
            for problem in exc.problems
        ]
    if schemas is None:
        return []
    count = len(schemas.page_schemas)
    pages = f", {count} of them for requests from pages" if count else ""
    return [
        ok("schemas", f"{len(schemas.schemas) + count} events have a schema{pages}"),
        *(
            warn(
                f"schema {schema.file}",
                f"data above {schema.certain_bytes} bytes may be refused because a check "
                "could take too long",
                fix="simplify its branches, or use maxLength instead of long repetitions "
                "in a pattern",
            )
            for schema in schemas.limited(
                settings.max_message_bytes, settings.max_event_bytes
            )
        ),
    ]
