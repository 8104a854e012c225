"""A Redis of the inbox: whether it keeps what it has taken, and who can listen."""

from collections.abc import AsyncIterator
from contextlib import suppress
from time import time

from bridge.core.redis_address import RedisAddress, is_redis, parse_redis
from bridge.doctor.certificates import check_certificate
from bridge.doctor.results import CheckResult, fail, ok, skip, warn
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.redis.server_info import (
    VERSION_LEAST,
    VERSION_LEAST_OF_CLUSTER,
    ServerFacts,
    server_facts,
)
from bridge.settings.checks import is_loopback
from bridge.settings.model import Settings


async def check_redis(settings: Settings) -> AsyncIterator[CheckResult]:
    """Look at each server; nothing if there is none, or none can be reached."""
    if not is_redis(settings.inbox):
        return
    # Why it cannot be reached is told with the inbox.
    with suppress(StoreUnavailableError, ConfigError):
        address = parse_redis(settings.inbox)
        for facts in await server_facts(address):
            for result in check_redis_server(facts, address):
                yield result


def check_redis_server(facts: ServerFacts, address: RedisAddress) -> list[CheckResult]:
    """Say what the facts about one server mean."""
    found = [_version(facts, address), _way(facts)]
    if facts.append_only is None or facts.policy is None:
        text = "CONFIG GET is not allowed, so its settings are not known"
        fix = "allow its user +config|get"
        found.append(skip(f"persistence of redis {facts.host}", text, fix=fix))
        return found
    return [*found, _persistence(facts), _memory(facts)]


def _version(facts: ServerFacts, address: RedisAddress) -> CheckResult:
    subject = f"redis {facts.host}"
    is_cluster = address.kind == "cluster"
    needed = VERSION_LEAST_OF_CLUSTER if is_cluster else VERSION_LEAST
    if facts.version < needed:
        least = ".".join(map(str, needed))
        return fail(subject, f"version {facts.version_text}, {least} is needed")
    return ok(subject, f"version {facts.version_text}")


def _way(facts: ServerFacts) -> CheckResult:
    if facts.certificate_end_s is not None:
        subject = f"certificate of redis {facts.host}"
        fix = "renew it, then CONFIG SET tls-cert-file FILE, which reads it anew"
        return check_certificate(
            subject, facts.certificate_end_s, now_s=time(), fix=fix
        )
    subject = f"way to redis {facts.host}"
    if is_loopback(facts.host.name):
        return ok(subject, "without TLS, on this machine")
    text = "without TLS: who listens has the password and every message"
    return warn(subject, text, fix="use rediss in BRIDGE_INBOX")


def _persistence(facts: ServerFacts) -> CheckResult:
    subject = f"persistence of redis {facts.host}"
    if not facts.append_only:
        text = "appendonly no: what was acked to the broker is gone after a restart"
        return fail(subject, text, fix=_setting(facts, "appendonly yes"))
    if facts.fsync != "always":
        text = (
            f"appendfsync {facts.fsync}: a power cut takes up to a second of what was "
            "acked, and after each restart pages are told to reload"
        )
        return warn(subject, text, fix=_setting(facts, "appendfsync always"))
    return ok(subject, "appendonly yes, appendfsync always")


def _memory(facts: ServerFacts) -> CheckResult:
    subject = f"memory of redis {facts.host}"
    if facts.policy == "noeviction":
        return ok(subject, "maxmemory-policy noeviction")
    text = f"maxmemory-policy {facts.policy} throws inboxes away when memory is short"
    return fail(subject, text, fix=_setting(facts, "maxmemory-policy noeviction"))


def _setting(facts: ServerFacts, setting: str) -> str:
    host = facts.host
    tls = " --tls" if facts.certificate_end_s is not None else ""
    return f"redis-cli{tls} -h {host.name} -p {host.port} CONFIG SET {setting}"
