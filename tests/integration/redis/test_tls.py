"""A Redis that speaks TLS, and every way in which that goes wrong, in words."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.core.redis_address import parse_redis
from bridge.doctor.inbox import check_inbox
from bridge.doctor.redis import check_redis
from bridge.doctor.results import CheckStatus
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis import opening as redis_opening
from bridge.inbox.redis.store import RedisInbox
from bridge.settings.load import load_settings
from tests.certificates import Authority, Signed
from tests.integration.running import SECRET
from tests.redis_bridges import RETENTION, bridge_on, messages
from tests.redis_server import RedisServer, free_port


@dataclass(frozen=True, slots=True)
class TlsRedis:
    """A server with a plain port and one for TLS, and who signed its certificate."""

    server: RedisServer
    port: int
    authority: Authority
    stranger: Authority
    ours: Signed

    def url(self, host: str = "127.0.0.1", **options: object) -> str:
        """The way there by TLS."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"rediss://{host}:{self.port}?{query}"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    folder: Path = tmp_path_factory.mktemp("tls")
    authority = Authority(folder, "authority")
    signed = authority.sign("server", address="127.0.0.1")
    port = free_port()
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(signed.cert),
        "tls-key-file": str(signed.key),
        "tls-ca-cert-file": str(authority.cert),
        "tls-auth-clients": "no",
    }
    with RedisServer.started(folder / "redis", options=options) as server:
        stranger, ours = Authority(folder, "stranger"), authority.sign("bridge")
        yield TlsRedis(server, port, authority, stranger, ours)


@pytest.fixture
def demanding(tls: TlsRedis) -> Iterator[TlsRedis]:
    """Return the same server, which lets those in only who show a certificate."""
    tls.server.command("CONFIG", "SET", "tls-auth-clients", "yes")
    yield tls
    tls.server.command("CONFIG", "SET", "tls-auth-clients", "no")


async def problem(url: str) -> str:
    """Return why a bridge is not ready with this store: what readiness tells."""
    inbox = RedisInbox(parse_redis(url), RETENTION)
    try:
        with pytest.raises(StoreUnavailableError):
            await inbox.open()
        assert inbox.problem is not None
        return inbox.problem
    finally:
        await inbox.close()


async def test_messages_and_the_live_feed_go_through_tls(tls: TlsRedis) -> None:
    """Commands, scripts and pushes, and more than one record of TLS holds."""
    data = [b"1", b"x" * 200_000, b"last"]
    async with bridge_on(tls.url(ca=tls.authority.cert)) as bridge:
        await bridge.inbox.follow("ann")
        await bridge.append(messages("ann", *data))

        assert await bridge.texts("ann") == data
        assert bridge.heard("ann") == data


async def test_a_certificate_of_ours_is_shown_to_a_server_that_wants_one(
    demanding: TlsRedis,
) -> None:
    """Which is how Redis is out of the box, once it speaks TLS."""
    ca, ours, stranger = demanding.authority, demanding.ours, demanding.stranger
    url = demanding.url(ca=ca.cert, cert=ours.cert, key=ours.key)
    async with bridge_on(url) as bridge:
        await bridge.append(messages("bob", b"1"))

    theirs = stranger.sign("impostor")
    assert "does it want a certificate of ours" in await problem(
        demanding.url(ca=ca.cert)
    )
    assert "does it trust our certificate" in await problem(
        demanding.url(ca=ca.cert, cert=theirs.cert, key=theirs.key)
    )


async def test_who_is_not_who_it_should_be_gets_no_password(tls: TlsRedis) -> None:
    """Neither one of another authority, nor another machine, nor one that nobody vouches for."""
    of_stranger = await problem(tls.url(ca=tls.stranger.cert))
    of_other_host = await problem(tls.url("localhost", ca=tls.authority.cert))
    of_nobody = await problem(tls.url())

    assert f"the certificate of 127.0.0.1:{tls.port} is not trusted" in of_stranger
    assert f"is ca={tls.stranger.cert} its authority?" in of_stranger
    assert "certificate is not valid for 'localhost'" in of_other_host
    assert "name its authority by ?ca=FILE" in of_nobody


async def test_sentinels_and_nodes_of_a_cluster_are_asked_by_tls(
    tls: TlsRedis, tmp_path: Path
) -> None:
    """And what they tell of are ports for TLS."""
    ca = tls.authority.cert
    port_of_sentinel, port_of_node = free_port(), free_port()
    words = {name: v for name, v in tls.server.options.items() if "tls-" in name}
    sentinel_options = words | {
        "tls-port": str(port_of_sentinel),
        "tls-replication": "yes",  # to masters, too
    }
    node_options = words | {
        "tls-port": str(port_of_node),
        "tls-cluster": "yes",  # else they tell of plain ports, whoever asks
        "cluster-enabled": "yes",
    }
    async with (
        RedisServer.start(
            tmp_path / "sentinel",
            is_durable=False,
            is_sentinel=True,
            options=sentinel_options,
        ) as sentinel,
        RedisServer.start(tmp_path / "node", options=node_options) as node,
    ):
        sentinel.command("SENTINEL", "MONITOR", "main", "127.0.0.1", str(tls.port), "1")
        node.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await asyncio.to_thread(node.wait_until, "cluster_state:ok", "CLUSTER", "INFO")

        for url in (
            f"rediss+sentinel://127.0.0.1:{port_of_sentinel}/main?ca={ca}",
            f"rediss+cluster://127.0.0.1:{port_of_node}?ca={ca}",
        ):
            async with bridge_on(url, namespace="found") as bridge:
                assert await bridge.append(messages("ann", b"1")) == [1]


async def test_files_that_are_missing_or_something_else_are_named(
    tls: TlsRedis, tmp_path: Path
) -> None:
    """A mounted secret that is not there yet is waited for; the text says which."""
    nothing = tmp_path / "none.pem"
    ca = tls.authority.cert

    assert await problem(tls.url(ca=nothing)) == (
        f"ca={nothing}: No such file or directory"
    )
    assert "cert=" in await problem(tls.url(ca=ca, cert=nothing, key=tls.ours.key))
    assert "no certificate and key in PEM that fit" in await problem(
        tls.url(ca=ca, cert=tls.ours.cert, key=tls.stranger.sign("other").key)
    )


async def test_tls_at_a_plain_port_and_the_other_way_round_are_told(
    tls: TlsRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One letter in a URL: each side waits for, or breaks off, what it does not know."""
    monkeypatch.setattr(redis_opening, "_HANDSHAKE_S", 0.3)
    plain = f"{tls.server.host}:{tls.server.port}"

    at_plain = await problem(f"rediss://{plain}?ca={tls.authority.cert}")
    at_tls = await problem(f"redis://127.0.0.1:{tls.port}")

    assert "TLS" in at_plain
    assert at_tls == "it hung up; does it want TLS, rediss://?"


async def test_the_doctor_looks_at_the_certificate(tls: TlsRedis) -> None:
    """Its end, and in the inbox's own line why it is not trusted."""
    good = load_settings(
        {"inbox": tls.url(ca=tls.authority.cert), "jwt_secret": SECRET}
    )
    bad = load_settings({"inbox": tls.url(ca=tls.stranger.cert), "jwt_secret": SECRET})
    found = {f.subject: f async for f in check_redis(good)}
    refused = await check_inbox(bad)

    certificate = found[f"certificate of redis 127.0.0.1:{tls.port}"]
    assert certificate.status is CheckStatus.FAIL  # those of tests hold for a day
    assert certificate.text == "ends in 1.0 days"
    assert refused.status is CheckStatus.FAIL
    assert "is not trusted" in refused.text
