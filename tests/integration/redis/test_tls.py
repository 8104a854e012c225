"""Redis with TLS, and the explanation of every way in which TLS fails."""

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
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming
from bridge.settings.load import load_settings
from tests.certificates import Authority, Signed
from tests.integration.running import SECRET
from tests.redis_bridges import RETENTION, bridge_on, messages
from tests.redis_server import RedisServer, free_port


@dataclass(frozen=True, slots=True)
class TlsRedis:
    """A server with a plain port and a TLS port, and the authority of its certificate."""

    server: RedisServer
    port: int
    authority: Authority
    stranger: Authority
    ours: Signed

    def url(self, host: str = "127.0.0.1", **options: object) -> str:
        """The URL of the TLS port."""
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
def with_client_certs(tls: TlsRedis) -> Iterator[TlsRedis]:
    """Return the same server, which now requires client certificates."""
    tls.server.command("CONFIG", "SET", "tls-auth-clients", "yes")
    yield tls
    tls.server.command("CONFIG", "SET", "tls-auth-clients", "no")


async def problem(url: str, timing: RedisTiming = DEFAULT_TIMING) -> str:
    """Return why a bridge is not ready with this store, as readiness reports it."""
    inbox = RedisInbox(parse_redis(url), RETENTION, timing=timing)
    try:
        with pytest.raises(StoreUnavailableError):
            await inbox.open()
        assert inbox.problem is not None
        return inbox.problem
    finally:
        await inbox.close()


async def test_messages_and_the_live_feed_go_through_tls(tls: TlsRedis) -> None:
    """Commands, scripts and pushes, and data larger than one TLS record."""
    data = [b"1", b"x" * 200_000, b"last"]
    async with bridge_on(tls.url(ca=tls.authority.cert)) as bridge:
        await bridge.inbox.follow("ann")
        await bridge.append(messages("ann", *data))

        assert await bridge.texts("ann") == data
        assert bridge.received("ann") == data


async def test_the_client_certificate_is_presented(
    with_client_certs: TlsRedis,
) -> None:
    """Redis requires one by default as soon as TLS is on."""
    ca, ours, stranger = (
        with_client_certs.authority,
        with_client_certs.ours,
        with_client_certs.stranger,
    )
    url = with_client_certs.url(ca=ca.cert, cert=ours.cert, key=ours.key)
    async with bridge_on(url) as bridge:
        await bridge.append(messages("bob", b"1"))

    theirs = stranger.sign("impostor")
    assert "does it require a client certificate" in await problem(
        with_client_certs.url(ca=ca.cert)
    )
    assert "does it trust the certificate" in await problem(
        with_client_certs.url(ca=ca.cert, cert=theirs.cert, key=theirs.key)
    )


async def test_an_untrusted_server_gets_no_password(tls: TlsRedis) -> None:
    """Signed by another authority, for another host, or by no known authority."""
    other_authority = await problem(tls.url(ca=tls.stranger.cert))
    other_host = await problem(tls.url("localhost", ca=tls.authority.cert))
    unknown_authority = await problem(tls.url())

    assert f"the certificate of 127.0.0.1:{tls.port} is not trusted" in other_authority
    assert f"is ca={tls.stranger.cert} its certificate authority?" in other_authority
    assert "certificate is not valid for 'localhost'" in other_host
    assert "name its certificate authority by ?ca=FILE" in unknown_authority


async def test_sentinels_and_cluster_nodes_are_asked_by_tls(
    tls: TlsRedis, tmp_path: Path
) -> None:
    """The ports that they report are TLS ports, too."""
    ca = tls.authority.cert
    port_of_sentinel, port_of_node = free_port(), free_port()
    words = {name: v for name, v in tls.server.options.items() if "tls-" in name}
    sentinel_options = words | {
        "tls-port": str(port_of_sentinel),
        "tls-replication": "yes",  # to masters, too
    }
    node_options = words | {
        "tls-port": str(port_of_node),
        "tls-cluster": "yes",  # without it they report plain ports to all clients
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


async def test_missing_and_wrong_certificate_files_are_named(
    tls: TlsRedis, tmp_path: Path
) -> None:
    """A mounted secret may appear later: the bridge waits, and names the file."""
    nothing = tmp_path / "none.pem"
    ca = tls.authority.cert

    assert await problem(tls.url(ca=nothing)) == (
        f"ca={nothing}: No such file or directory"
    )
    assert "cert=" in await problem(tls.url(ca=ca, cert=nothing, key=tls.ours.key))
    assert "no matching certificate and key in PEM format" in await problem(
        tls.url(ca=ca, cert=tls.ours.cert, key=tls.stranger.sign("other").key)
    )


async def test_tls_on_a_plain_port_and_plain_text_on_a_tls_port_are_explained(
    tls: TlsRedis,
) -> None:
    """One missing letter in a URL: each side waits for the other, or hangs up."""
    timing = RedisTiming(tls_handshake_s=0.3)
    plain = f"{tls.server.host}:{tls.server.port}"

    at_plain = await problem(f"rediss://{plain}?ca={tls.authority.cert}", timing)
    at_tls = await problem(f"redis://127.0.0.1:{tls.port}")

    assert "TLS" in at_plain
    assert at_tls == "the server closed the connection; does it expect TLS (rediss://)?"


async def test_bridge_check_reports_the_certificate(tls: TlsRedis) -> None:
    """When it expires, and, with the inbox, why it is not trusted."""
    good = load_settings(
        {"inbox": tls.url(ca=tls.authority.cert), "jwt_secret": SECRET}
    )
    bad = load_settings({"inbox": tls.url(ca=tls.stranger.cert), "jwt_secret": SECRET})
    found = {f.subject: f async for f in check_redis(good)}
    refused = await check_inbox(bad, is_running=False)

    certificate = found[f"certificate of redis 127.0.0.1:{tls.port}"]
    assert (
        certificate.status is CheckStatus.FAIL
    )  # test certificates are valid for one day
    assert certificate.text == "ends in 1.0 days"
    assert refused.status is CheckStatus.FAIL
    assert "is not trusted" in refused.text
