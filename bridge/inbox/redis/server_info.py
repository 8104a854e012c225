"""What a Redis says of itself, for `bridge check`."""

from dataclasses import dataclass
from typing import Final

from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.redis.connection import RefusedByRedisError, ask, connect
from bridge.inbox.redis.protocol import MISSING, Link
from bridge.inbox.redis.servers import find_servers, parse_info

# CONFIG SET of two at once is younger, and only advice.
VERSION_LEAST: Final = (6, 2)
# Channels that stay with their slots.
VERSION_LEAST_OF_CLUSTER: Final = (7, 0)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """
    One server.

    Attributes:
        host: Where it is.
        version_text: As it calls it.
        append_only: Whether it writes its commands down; ``None`` = it does not tell.
        fsync: When they are on the disk.
        policy: What it does when its memory is full; ``None`` = it does not tell.
        certificate_end_s: Until when its certificate holds, in Unix time; ``None``
            without TLS.

    """

    host: Host
    version_text: str
    append_only: bool | None
    fsync: str | None
    policy: str | None
    certificate_end_s: float | None = None

    @property
    def version(self) -> tuple[int, ...]:
        """As numbers."""
        parts = self.version_text.split(".")
        return tuple(int(part) for part in parts if part.isdecimal())


async def server_facts(address: RedisAddress) -> list[ServerFacts]:
    """
    Ask each master.

    Raises:
        ConfigError: If the extra `redis` is not installed.
        StoreUnavailableError: If one cannot be asked, or does not say what it is.

    """
    if MISSING is not None:
        raise ConfigError((f"{address} needs pip install 'bridge[redis]'",))
    found = []
    for host in await find_servers(address):
        try:
            link = await connect(address, host)
        except OSError as exc:
            raise StoreUnavailableError(str(address), str(exc)) from exc
        try:
            found.append(await _facts(address, host, link))
        except RefusedByRedisError as exc:
            raise StoreUnavailableError(str(address), str(exc)) from exc
        finally:
            link.abort("it was asked")
    return found


async def _facts(address: RedisAddress, host: Host, link: Link) -> ServerFacts:
    info = parse_info(await ask(address, link, b"INFO", b"server"))
    version = info.get("valkey_version") or info["redis_version"]
    settings: dict[bytes, bytes] = {}
    try:
        for pattern in (b"append*", b"maxmemory-policy"):
            settings |= await ask(address, link, b"CONFIG", b"GET", pattern)
    except (RefusedByRedisError, StoreUnavailableError):
        return ServerFacts(host, version, None, None, None, link.certificate_end_s)
    return ServerFacts(
        host,
        version,
        settings.get(b"appendonly") == b"yes",
        settings.get(b"appendfsync", b"").decode(),
        settings.get(b"maxmemory-policy", b"").decode(),
        link.certificate_end_s,
    )
