"""Version and settings of Redis servers, for `bridge check`."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from bridge.core.distribution import install_command
from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.redis.connection import connect
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.protocol import MISSING, RedisConnection
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming
from bridge.inbox.redis.topology import find_servers

MINIMUM_VERSION: Final = (6, 2)
# Sharded channels, which belong to slots.
MINIMUM_CLUSTER_VERSION: Final = (7, 0)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """
    What is known of one server.

    Attributes:
        host: Its address.
        version_text: Its version, as it reports it.
        append_only: Whether it keeps an append-only file; ``None`` = unknown.
        fsync: When that file is flushed to disk (appendfsync); ``None`` = unknown.
        policy: What it evicts when its memory is full; ``None`` = unknown.
        certificate_end_s: When its certificate expires, in Unix time; ``None`` without
            TLS.

    """

    host: Host
    version_text: str
    append_only: bool | None
    fsync: str | None
    policy: str | None
    certificate_end_s: float | None = None

    @property
    def version(self) -> tuple[int, ...]:
        """The version as numbers."""
        parts = self.version_text.split(".")
        return tuple(int(part) for part in parts if part.isdecimal())


async def server_facts(
    address: RedisAddress, *, timing: RedisTiming = DEFAULT_TIMING
) -> list[ServerFacts]:
    """
    Ask each master.

    Raises:
        ConfigError: If the extra `redis` is not installed.
        StoreUnavailableError: If one cannot be reached, or refuses INFO.

    """
    if MISSING is not None:
        raise ConfigError((f"{address} needs {install_command('redis')}",))
    found = []
    for host in await find_servers(address, timing):
        connection = await connect(address, host, timing=timing)
        try:
            found.append(await _facts(host, connection))
        except RefusedByRedisError as exc:
            raise StoreUnavailableError(str(address), str(exc)) from exc
        finally:
            connection.abort("no longer needed")
    return found


async def _facts(host: Host, connection: RedisConnection) -> ServerFacts:
    info = await connection.info(b"server")
    version = info.get("valkey_version") or info["redis_version"]
    settings: dict[bytes, bytes] = {}
    with suppress(RefusedByRedisError, StoreUnavailableError):  # if CONFIG is forbidden
        for pattern in (b"append*", b"maxmemory-policy"):
            settings |= await connection.ask(b"CONFIG", b"GET", pattern)
    is_known = bool(settings)
    return ServerFacts(
        host,
        version,
        settings.get(b"appendonly") == b"yes" if is_known else None,
        settings.get(b"appendfsync", b"").decode() if is_known else None,
        settings.get(b"maxmemory-policy", b"").decode() if is_known else None,
        connection.certificate_end_s,
    )
