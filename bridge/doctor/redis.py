"""A Redis of the inbox: whether it keeps what it has taken, and who can listen."""

from collections.abc import AsyncIterator
from contextlib import suppress
from time import time

from bridge.core.redis_address import RedisAddress, is_redis, parse_redis
from bridge.doctor.certificates import certificate_finding
from bridge.doctor.results import Finding, note, ok, unknown, wrong
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.redis.server_info import (
    VERSION_LEAST,
    VERSION_LEAST_OF_CLUSTER,
    ServerFacts,
    server_facts,
)
from bridge.settings.checks import is_loopback
from bridge.settings.model import Settings


async def redis_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Look at each server; nothing if there is none, or none can be reached."""
    if not is_redis(settings.inbox):
        return
    # Why it cannot be reached is told with the inbox.
    with suppress(StoreUnavailableError, ConfigError):
        address = parse_redis(settings.inbox)
        for facts in await server_facts(address):
            for finding in findings_of(facts, address):
                yield finding


def findings_of(facts: ServerFacts, address: RedisAddress) -> list[Finding]:
    """Say what the facts about one server mean."""
    found = [_version(facts, address), _way(facts)]
    if facts.append_only is None or facts.policy is None:
        text = "CONFIG GET is not allowed, so its settings are not known"
        mend = "allow its user +config|get"
        found.append(unknown(f"persistence of redis {facts.host}", text, mend=mend))
        return found
    return [*found, _persistence(facts), _memory(facts)]


def _version(facts: ServerFacts, address: RedisAddress) -> Finding:
    subject = f"redis {facts.host}"
    is_cluster = address.kind == "cluster"
    needed = VERSION_LEAST_OF_CLUSTER if is_cluster else VERSION_LEAST
    if facts.version < needed:
        least = ".".join(map(str, needed))
        return wrong(subject, f"version {facts.version_text}, {least} is needed")
    return ok(subject, f"version {facts.version_text}")


def _way(facts: ServerFacts) -> Finding:
    if facts.certificate_end_s is not None:
        subject = f"certificate of redis {facts.host}"
        mend = "renew it, then CONFIG SET tls-cert-file FILE, which reads it anew"
        return certificate_finding(
            subject, facts.certificate_end_s, now_s=time(), mend=mend
        )
    subject = f"way to redis {facts.host}"
    if is_loopback(facts.host.name):
        return ok(subject, "without TLS, on this machine")
    text = "without TLS: who listens has the password and every message"
    return note(subject, text, mend="use rediss in BRIDGE_INBOX")


def _persistence(facts: ServerFacts) -> Finding:
    subject = f"persistence of redis {facts.host}"
    if not facts.append_only:
        text = "appendonly no: what was acked to the broker is gone after a restart"
        return wrong(subject, text, mend=_setting(facts, "appendonly yes"))
    if facts.fsync != "always":
        text = (
            f"appendfsync {facts.fsync}: a power cut takes up to a second of what was "
            "acked, and after each restart pages are told to reload"
        )
        return note(subject, text, mend=_setting(facts, "appendfsync always"))
    return ok(subject, "appendonly yes, appendfsync always")


def _memory(facts: ServerFacts) -> Finding:
    subject = f"memory of redis {facts.host}"
    if facts.policy == "noeviction":
        return ok(subject, "maxmemory-policy noeviction")
    text = f"maxmemory-policy {facts.policy} throws inboxes away when memory is short"
    return wrong(subject, text, mend=_setting(facts, "maxmemory-policy noeviction"))


def _setting(facts: ServerFacts, setting: str) -> str:
    host = facts.host
    tls = " --tls" if facts.certificate_end_s is not None else ""
    return f"redis-cli{tls} -h {host.name} -p {host.port} CONFIG SET {setting}"
