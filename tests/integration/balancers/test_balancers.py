"""Windows of several bridges behind nginx and HAProxy, configured as in compose/balancers."""

import asyncio

import aiohttp
import orjson
import pytest
from yarl import URL

from bridge.sockets.engineio.session import EngineSession
from tests.conftest import eventually
from tests.integration.balancers.conftest import BalancedBridges, open_balanced
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.running_server import message
from tests.local_node import LocalNode

TRANSPORTS = pytest.mark.parametrize(
    "transports",
    [("polling",), ("websocket",), ("polling", "websocket")],
    ids="-".join,
)


async def store(balanced: BalancedBridges, user: str, *data: object) -> None:
    """Store messages in the inbox of the bridge where the one window of `user` is."""
    inbox = balanced.bridge_of(user).bridge.components.inbox
    await inbox.append([message(user, each) for each in data])


@TRANSPORTS
async def test_windows_are_distributed_and_each_stays_with_its_bridge(
    balanced: BalancedBridges, pages: Pages, transports: tuple[str, ...]
) -> None:
    """A poll routed to the wrong bridge fails, because its session is unknown there."""
    users = [f"user-{number}" for number in range(4)]
    for user in users:
        await pages.connected(user, balanced.url, **balanced.options(user, *transports))
    if len(transports) > 1:
        for user in users:
            await pages.until(user, "upgrade", "websocket")

    for number in range(5):
        for user in users:
            await store(balanced, user, number)
        for user in users:
            await pages.until(user, "event", "message", count=number + 1)

    found = [balanced.bridge_of(user) for user in users]
    assert {id(home) for home in found} == {id(each) for each in balanced.bridges}
    for user in users:
        assert pages.data(user) == list(range(5))
        assert not pages.all(user, "disconnect")
        assert not pages.all(user, "connect_error")


async def test_a_message_may_be_as_large_as_without_a_balancer(
    balanced: BalancedBridges, pages: Pages
) -> None:
    """The buffers of a proxy are smaller than this message."""
    text = "x" * 250_000
    for transport in ("polling", "websocket"):
        await pages.connected(
            transport, balanced.url, **balanced.options(transport, transport)
        )
        await store(balanced, transport, text)
        await pages.until(transport, "event", "message")
        assert pages.data(transport) == [text]


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_a_draining_bridge_gets_no_new_windows(
    balanced: BalancedBridges, pages: Pages, transport: str
) -> None:
    """No client sees a refusal, and connected windows are served until the end."""
    await pages.connected(
        "before", balanced.url, **balanced.options("before", transport)
    )
    draining = balanced.bridge_of("before")
    other = balanced.other_than(draining)

    draining.bridge.components.sockets.engine.stop_accepting()
    users = [f"after-{number}" for number in range(3)]
    for user in users:
        await pages.connected(user, balanced.url, **balanced.options(user, transport))
        assert balanced.bridge_of(user) is other
        assert not pages.all(user, "connect_error")

    for number in range(3):
        await store(balanced, "before", number)
        await pages.until("before", "event", "message", count=number + 1)
    assert not pages.all("before", "disconnect")


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_windows_of_a_stopping_bridge_reconnect_to_the_other(
    balanced: BalancedBridges, pages: Pages, transport: str
) -> None:
    """They are notified and reconnect automatically."""
    users = [f"user-{number}" for number in range(4)]
    for user in users:
        await pages.connected(user, balanced.url, **balanced.options(user, transport))
    leaving = balanced.bridge_of("user-0")
    other = balanced.other_than(leaving)
    notified = [user for user in users if balanced.bridge_of(user) is leaving]

    leaving.stop.set()

    for user in notified:
        closing = await pages.until(user, "event", "bridge:closing")
        assert closing[0]["code"] == "draining"
        await pages.until(user, "event", "bridge:sync", count=2)
    assert all(balanced.bridge_of(user) is other for user in users)


async def test_haproxy_checks_the_readiness_of_each_bridge(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """New windows go to the ready bridge; connected ones stay, also those that poll."""
    async with (
        open_balanced("haproxy", broker, namespace) as balanced,
        aiohttp.ClientSession() as web,
    ):

        async def takes_windows() -> bool:
            async with web.get(f"{balanced.url}/health/ready") as answer:
                return answer.status == 200

        async def takes_none() -> bool:
            return not await takes_windows()

        for user in ("polling", "websocket"):
            await pages.connected(user, balanced.url, **balanced.options(user, user))
        ready = balanced.bridge_of("websocket")
        for each in balanced.bridges:
            each.bridge.components.readiness.is_draining = True
        await eventually(takes_none)
        ready.bridge.components.readiness.is_draining = False
        await eventually(takes_windows)

        for number in range(2):
            for transport in ("polling", "websocket"):
                user = f"{transport} {number}"
                await pages.connected(
                    user, balanced.url, **balanced.options(user, transport)
                )
                assert balanced.bridge_of(user) is ready
        for user in ("polling", "websocket"):
            await store(balanced, user, "still here")
            await pages.until(user, "event", "message")
            assert not pages.all(user, "disconnect")


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_the_address_of_a_client_reaches_its_bridge(
    balanced: BalancedBridges, transport: str
) -> None:
    """Limits count clients, not proxies. An address forged by the client is ignored."""
    target = URL(f"{balanced.url}/socket.io/").with_query(EIO="4", transport=transport)
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    forged = {"X-Forwarded-For": "203.0.113.9"}
    async with aiohttp.ClientSession(connector=connector, headers=forged) as session:
        if transport == "websocket":
            websocket = await session.ws_connect(target)
            await websocket.receive_str()
        else:
            opening = await session.get(target)
            assert opening.status == 200
        addresses = [session.address for session in sessions(balanced).values()]
        assert addresses == ["127.0.0.2"]


async def test_a_body_over_the_limit_affects_no_other_client(
    balanced: BalancedBridges, pages: Pages
) -> None:
    """Over the balancer's limit it reaches no bridge; over the bridge's it closes a session."""
    await pages.connected("page", balanced.url, **balanced.options("page", "polling"))
    async with aiohttp.ClientSession() as web:
        sid = await open_session(web, balanced)
        target = URL(f"{balanced.url}/socket.io/").with_query(
            EIO="4", transport="polling", sid=sid
        )
        async with web.post(target, data=b"4" * 300_000) as answer:
            assert answer.status == 413
        assert sid in sessions(balanced)
        async with web.post(target, data=b"4" * 200_000) as answer:
            assert answer.status == 413
    await store(balanced, "page", 1)
    await pages.until("page", "event", "message")
    assert not pages.all("page", "disconnect")


async def test_a_slow_post_is_buffered_by_the_balancer(
    balanced: BalancedBridges,
) -> None:
    """A bridge accepts a body for ten seconds only; a bad network may need longer."""
    async with aiohttp.ClientSession() as web:
        sid = await open_session(web, balanced)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", balanced.balancer.port
        )
        writer.write(
            f"POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\n"
            f"Host: x\r\nContent-Length: 3\r\n\r\n4".encode()
        )
        await writer.drain()
        # A later request has overtaken it: the bridge has not received the POST.
        await open_session(web, balanced)
        assert not sessions(balanced)[sid]._is_posting
        writer.write(b"1\x1e")
        async with asyncio.timeout(10):
            assert b" 200 " in await reader.readline()
        writer.close()


async def test_only_windows_and_health_checks_pass_the_balancer(
    balanced: BalancedBridges,
) -> None:
    """Neither the rest of the public port nor the operator port is reachable."""
    async with aiohttp.ClientSession() as web:
        for path in ("/", "/api/users", "/metrics", "/console", "/health/live"):
            async with web.get(f"{balanced.url}{path}") as answer:
                assert answer.status == 404
        async with web.get(f"{balanced.url}/socket.io/socket.io.js") as answer:
            assert answer.status == 200
        async with web.get(f"{balanced.url}/health/ready") as answer:
            assert answer.status == 200


async def test_a_balancer_logs_no_session_ids(balanced: BalancedBridges) -> None:
    """A session id is enough to read the messages of its window."""
    async with aiohttp.ClientSession() as web:
        sid = await open_session(web, balanced)
        target = URL(f"{balanced.url}/socket.io/").with_query(
            EIO="4", transport="polling", sid=sid
        )
        async with web.post(target, data=b"1"):
            pass
    await eventually(lambda: balanced.balancer.log().count("/socket.io/") == 2)
    assert sid not in balanced.balancer.log()


async def open_session(web: aiohttp.ClientSession, balanced: BalancedBridges) -> str:
    """Open a polling session; return its id."""
    target = URL(f"{balanced.url}/socket.io/").with_query(EIO="4", transport="polling")
    async with web.get(target) as answer:
        assert answer.status == 200
        return str(orjson.loads((await answer.read())[1:])["sid"])


def sessions(balanced: BalancedBridges) -> dict[str, EngineSession]:
    """Return the sessions of all bridges."""
    return {
        sid: session
        for each in balanced.bridges
        for sid, session in each.bridge.components.sockets.engine.sessions.items()
    }
