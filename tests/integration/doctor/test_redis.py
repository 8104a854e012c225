"""Checks against a real Redis: problems are found, and the suggested fixes work."""

import asyncio
import shlex
from pathlib import Path

from bridge.core.redis_address import Host, parse_redis
from bridge.doctor.redis import check_redis, check_redis_server
from bridge.doctor.results import CheckResult, CheckStatus
from bridge.inbox.redis.server_info import ServerFacts
from bridge.settings.load import load_settings
from tests.integration.running import SECRET
from tests.redis_server import RedisServer


async def found(url: str) -> list[CheckResult]:
    """Return the results of all checks of the server."""
    settings = load_settings({"inbox": url, "jwt_secret": SECRET})
    return [result async for result in check_redis(settings)]


async def test_the_suggested_commands_make_a_volatile_server_durable(
    tmp_path: Path,
) -> None:
    """By default Redis has no append-only file, and a policy may evict keys."""
    options = {"maxmemory-policy": "allkeys-lru"}
    async with RedisServer.start(tmp_path, is_durable=False, options=options) as server:
        for _ in range(3):  # appendfsync is only seen once appendonly is on
            for result in await found(server.url):
                if result.fix:
                    words = shlex.split(result.fix)
                    assert words[:5] == [
                        "redis-cli",
                        "-h",
                        server.host,
                        "-p",
                        str(server.port),
                    ]
                    await asyncio.to_thread(server.command, *words[5:])

        assert {f.status for f in await found(server.url)} == {CheckStatus.OK}


async def test_an_unreachable_server_is_reported_by_the_inbox_check_only() -> None:
    """One problem is reported once."""
    assert await found("redis://127.0.0.1:1") == []
    assert await found("memory:") == []


def test_an_old_server_that_refuses_config_get_is_reported() -> None:
    """Hosted servers often refuse CONFIG."""
    facts = ServerFacts(Host("h", 1), "6.0.16", None, None, None)

    statuses = [f.status for f in check_redis_server(facts, parse_redis("redis://h"))]
    assert statuses == [CheckStatus.FAIL, CheckStatus.WARN, CheckStatus.SKIP]


def test_a_cluster_needs_a_newer_redis() -> None:
    """Redis 6.2 has no sharded channels."""
    facts = ServerFacts(Host("h", 1), "6.2.14", True, "always", "noeviction")  # noqa: FBT003 - it writes its commands down

    of_server, of_cluster = (
        check_redis_server(facts, parse_redis(url))[0]
        for url in ("redis://h", "redis+cluster://h")
    )

    assert of_server.status is CheckStatus.OK
    assert of_cluster.text == "version 6.2.14, 7.0 is required"
