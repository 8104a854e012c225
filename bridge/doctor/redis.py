"""A Redis of the inbox: whether it keeps what it has taken."""

from collections.abc import AsyncIterator
from contextlib import suppress

from bridge.core.redis_address import is_redis, parse_redis
from bridge.doctor.findings import Finding, note, ok, unknown, wrong
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.redis_facts import VERSION_LEAST, ServerFacts, server_facts
from bridge.settings.model import Settings


async def redis_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Look at each server; nothing if there is none, or none can be reached."""
    if not is_redis(settings.inbox):
        return
    # Why it cannot be reached is told with the inbox.
    with suppress(StoreUnavailableError, ConfigError):
        for facts in await server_facts(parse_redis(settings.inbox)):
            for finding in findings_of(facts):
                yield finding


def findings_of(facts: ServerFacts) -> list[Finding]:
    """Say what the facts about one server mean."""
    found = [_version(facts)]
    if facts.append_only is None or facts.policy is None:
        text = "CONFIG GET is not allowed, so its settings are not known"
        mend = "allow its user +config|get"
        found.append(unknown(f"persistence of redis {facts.host}", text, mend=mend))
        return found
    return [*found, _persistence(facts), _memory(facts)]


def _version(facts: ServerFacts) -> Finding:
    subject = f"redis {facts.host}"
    if facts.version < VERSION_LEAST:
        least = ".".join(map(str, VERSION_LEAST))
        return wrong(subject, f"version {facts.version_text}, {least} is needed")
    return ok(subject, f"version {facts.version_text}")


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
    return f"redis-cli -h {host.name} -p {host.port} CONFIG SET {setting}"
