"""The doctor at a real Redis: what is wrong is found, and what it says mends it."""

import asyncio
import shlex
from pathlib import Path

from bridge.core.redis_address import Host, parse_redis
from bridge.doctor.redis import findings_of, redis_findings
from bridge.doctor.results import Finding, Verdict
from bridge.inbox.redis.server_info import ServerFacts
from bridge.settings.load import load_settings
from tests.integration.running import SECRET
from tests.redis_server import RedisServer


async def found(url: str) -> list[Finding]:
    """Look at the server."""
    settings = load_settings({"inbox": url, "jwt_secret": SECRET})
    return [finding async for finding in redis_findings(settings)]


async def test_a_server_that_loses_inboxes_is_mended_by_what_the_doctor_says(
    tmp_path: Path,
) -> None:
    """Out of the box Redis keeps nothing, and may be told to throw keys away."""
    options = {"maxmemory-policy": "allkeys-lru"}
    async with RedisServer.start(tmp_path, is_durable=False, options=options) as server:
        for _ in range(3):  # appendfsync is only seen once appendonly is on
            for finding in await found(server.url):
                if finding.mend:
                    words = shlex.split(finding.mend)
                    assert words[:5] == [
                        "redis-cli",
                        "-h",
                        server.host,
                        "-p",
                        str(server.port),
                    ]
                    await asyncio.to_thread(server.command, *words[5:])

        assert {f.verdict for f in await found(server.url)} == {Verdict.OK}


async def test_a_server_that_cannot_be_reached_is_told_with_the_inbox() -> None:
    """One line for one thing."""
    assert await found("redis://127.0.0.1:1") == []
    assert await found("memory:") == []


def test_an_old_server_and_one_that_does_not_tell_are_named() -> None:
    """Hosted ones refuse CONFIG."""
    facts = ServerFacts(Host("h", 1), "6.0.16", None, None, None)

    verdicts = [f.verdict for f in findings_of(facts, parse_redis("redis://h"))]
    assert verdicts == [Verdict.WRONG, Verdict.NOTE, Verdict.UNKNOWN]


def test_a_cluster_wants_a_younger_redis() -> None:
    """In 6.2 channels know nothing of slots."""
    facts = ServerFacts(Host("h", 1), "6.2.14", True, "always", "noeviction")  # noqa: FBT003 - it writes its commands down

    of_server, of_cluster = (
        findings_of(facts, parse_redis(url))[0]
        for url in ("redis://h", "redis+cluster://h")
    )

    assert of_server.verdict is Verdict.OK
    assert of_cluster.text == "version 6.2.14, 7.0 is needed"
