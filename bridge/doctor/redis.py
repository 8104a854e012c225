"""Checks of the Redis servers that hold the inboxes: durability, version and TLS."""

from collections.abc import AsyncIterator
from contextlib import suppress
from time import time

from bridge.core.redis_address import RedisAddress, is_redis, parse_redis
from bridge.doctor.certificates import check_certificate
from bridge.doctor.results import CheckResult, fail, ok, skip, warn
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.redis.server_info import (
    MINIMUM_CLUSTER_VERSION,
    MINIMUM_VERSION,
    ServerFacts,
    server_facts,
)
from bridge.settings.checks import is_loopback
from bridge.settings.model import Settings


async def check_redis(settings: Settings) -> AsyncIterator[CheckResult]:
    """Check each server; yield nothing without Redis, or if it cannot be reached."""
    if not is_redis(settings.inbox):
        return
    # The check of the inbox reports why the servers cannot be reached.
    with suppress(StoreUnavailableError, ConfigError):
        address = parse_redis(settings.inbox)
        for facts in await server_facts(address):
            for result in check_redis_server(facts, address):
                yield result


def check_redis_server(facts: ServerFacts, address: RedisAddress) -> list[CheckResult]:
    """Return what follows from the facts about one server."""
    found = [_version(facts, address), _encryption(facts)]
    if facts.append_only is None or facts.policy is None:
        text = "CONFIG GET is not allowed, so its settings are unknown"
        fix = "allow its user +config|get"
        found.append(skip(f"persistence of redis {facts.host}", text, fix=fix))
        return found
    return [*found, _persistence(facts), _memory(facts)]


def _version(facts: ServerFacts, address: RedisAddress) -> CheckResult:
    subject = f"redis {facts.host}"
    is_cluster = address.kind == "cluster"
    needed = MINIMUM_CLUSTER_VERSION if is_cluster else MINIMUM_VERSION
    if facts.version < needed:
        least = ".".join(map(str, needed))
        text = f"version {facts.version_text}, {least} is required"
        return fail(subject, text, fix=f"upgrade Redis to {least} or later")
    return ok(subject, f"version {facts.version_text}")


def _encryption(facts: ServerFacts) -> CheckResult:
    if facts.certificate_end_s is not None:
        subject = f"certificate of redis {facts.host}"
        fix = "renew it, then CONFIG SET tls-cert-file FILE, which reloads it"
        return check_certificate(
            subject, facts.certificate_end_s, now_s=time(), fix=fix
        )
    subject = f"connection to redis {facts.host}"
    if is_loopback(facts.host.name):
        return ok(subject, "without TLS, on this machine")
    text = "without TLS: anyone on the network path can read the password and every message"
    return warn(subject, text, fix="use rediss in BRIDGE_INBOX")


def _persistence(facts: ServerFacts) -> CheckResult:
    subject = f"persistence of redis {facts.host}"
    if not facts.append_only:
        text = "appendonly no: messages that were acked to the broker are lost at a restart"
        return fail(subject, text, fix=_setting(facts, "appendonly yes"))
    if facts.fsync != "always":
        text = (
            f"appendfsync {facts.fsync}: a power failure loses up to a second of acked "
            "messages, and after each restart pages are asked to reload"
        )
        return warn(subject, text, fix=_setting(facts, "appendfsync always"))
    return ok(subject, "appendonly yes, appendfsync always")


def _memory(facts: ServerFacts) -> CheckResult:
    subject = f"memory of redis {facts.host}"
    if facts.policy == "noeviction":
        return ok(subject, "maxmemory-policy noeviction")
    fix = _setting(facts, "maxmemory-policy noeviction")
    if facts.policy is not None and facts.policy.startswith("volatile"):
        text = (
            f"maxmemory-policy {facts.policy} may delete the results of batches when memory "
            "is short: messages without an id could be stored twice"
        )
        return warn(subject, text, fix=fix)
    text = f"maxmemory-policy {facts.policy} deletes inboxes when memory is short"
    return fail(subject, text, fix=fix)


def _setting(facts: ServerFacts, setting: str) -> str:
    host = facts.host
    tls = " --tls" if facts.certificate_end_s is not None else ""
    return f"redis-cli{tls} -h {host.name} -p {host.port} CONFIG SET {setting}"
