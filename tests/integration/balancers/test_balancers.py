"""Pages reach several bridges through nginx and HAProxy, as compose/balancers ships them."""

import asyncio

import aiohttp
import orjson
import pytest
from yarl import URL

from bridge.demo.private_node import LocalNode
from bridge.sockets.engineio.session import EngineSession
from tests.conftest import eventually
from tests.integration.balancers.conftest import House, open_house
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.listeners import message

TRANSPORTS = pytest.mark.parametrize(
    "transports",
    [("polling",), ("websocket",), ("polling", "websocket")],
    ids="-".join,
)


async def store(house: House, user: str, *data: object) -> None:
    """Store messages in the inbox of the bridge where the one window of `user` is."""
    inbox = house.home_of(user).bridge.components.inbox
    await inbox.append([message(user, each) for each in data])


@TRANSPORTS
async def test_windows_are_spread_and_each_stays_with_its_bridge(
    house: House, pages: Pages, transports: tuple[str, ...]
) -> None:
    """A poll that comes to another bridge ends its session: it is unknown there."""
    users = [f"user-{number}" for number in range(4)]
    for user in users:
        await pages.connected(user, house.url, **house.options(user, *transports))
    if len(transports) > 1:
        for user in users:
            await pages.until(user, "upgrade", "websocket")

    for number in range(5):
        for user in users:
            await store(house, user, number)
        for user in users:
            await pages.until(user, "event", "message", count=number + 1)

    homes = [house.home_of(user) for user in users]
    assert {id(home) for home in homes} == {id(each) for each in house.bridges}
    for user in users:
        assert pages.data(user) == list(range(5))
        assert not pages.all(user, "disconnect")
        assert not pages.all(user, "connect_error")


async def test_a_message_may_be_as_large_as_without_a_balancer(
    house: House, pages: Pages
) -> None:
    """Buffers of a proxy end at a few pages."""
    text = "x" * 250_000
    for transport in ("polling", "websocket"):
        await pages.connected(
            transport, house.url, **house.options(transport, transport)
        )
        await store(house, transport, text)
        await pages.until(transport, "event", "message")
        assert pages.data(transport) == [text]


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_a_bridge_that_sends_its_windows_on_gets_no_new_ones(
    house: House, pages: Pages, transport: str
) -> None:
    """Nobody sees its refusals, and who is still there is served to the last."""
    await pages.connected("before", house.url, **house.options("before", transport))
    draining = house.home_of("before")
    other = house.other_than(draining)

    draining.bridge.components.sockets.engine.stop_accepting()
    users = [f"after-{number}" for number in range(3)]
    for user in users:
        await pages.connected(user, house.url, **house.options(user, transport))
        assert house.home_of(user) is other
        assert not pages.all(user, "connect_error")

    for number in range(3):
        await store(house, "before", number)
        await pages.until("before", "event", "message", count=number + 1)
    assert not pages.all("before", "disconnect")


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_windows_of_a_bridge_that_leaves_go_over_to_the_other(
    house: House, pages: Pages, transport: str
) -> None:
    """A restart: they are told, and come again by themselves."""
    users = [f"user-{number}" for number in range(4)]
    for user in users:
        await pages.connected(user, house.url, **house.options(user, transport))
    leaving = house.home_of("user-0")
    other = house.other_than(leaving)
    told = [user for user in users if house.home_of(user) is leaving]

    leaving.stop.set()

    for user in told:
        closing = await pages.until(user, "event", "bridge:closing")
        assert closing[0]["code"] == "draining"
        await pages.until(user, "event", "bridge:sync", count=2)
    assert all(house.home_of(user) is other for user in users)


async def test_haproxy_asks_each_bridge_whether_it_is_ready(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """New windows go where they are wanted; those that are there stay, polls included."""
    async with (
        open_house("haproxy", broker, namespace) as house,
        aiohttp.ClientSession() as web,
    ):

        async def takes_windows() -> bool:
            async with web.get(f"{house.url}/health/ready") as answer:
                return answer.status == 200

        async def takes_none() -> bool:
            return not await takes_windows()

        for user in ("polling", "websocket"):
            await pages.connected(user, house.url, **house.options(user, user))
        ready = house.home_of("websocket")
        for each in house.bridges:
            each.bridge.components.readiness.is_draining = True
        await eventually(takes_none)
        ready.bridge.components.readiness.is_draining = False
        await eventually(takes_windows)

        for number in range(2):
            for transport in ("polling", "websocket"):
                user = f"{transport} {number}"
                await pages.connected(user, house.url, **house.options(user, transport))
                assert house.home_of(user) is ready
        for user in ("polling", "websocket"):
            await store(house, user, "still here")
            await pages.until(user, "event", "message")
            assert not pages.all(user, "disconnect")


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_the_address_of_a_page_reaches_its_bridge(
    house: House, transport: str
) -> None:
    """Caps count visitors, not proxies; what a page says of itself is not believed."""
    target = URL(f"{house.url}/socket.io/").with_query(EIO="4", transport=transport)
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    forged = {"X-Forwarded-For": "203.0.113.9"}
    async with aiohttp.ClientSession(connector=connector, headers=forged) as session:
        if transport == "websocket":
            websocket = await session.ws_connect(target)
            await websocket.receive_str()
        else:
            opening = await session.get(target)
            assert opening.status == 200
        addresses = [session.address for session in sessions(house).values()]
        assert addresses == ["127.0.0.2"]


async def test_a_body_that_is_too_large_costs_nobody_else_anything(
    house: House, pages: Pages
) -> None:
    """Over the balancer's bound it never reaches a bridge; over the bridge's, it ends one session."""
    await pages.connected("page", house.url, **house.options("page", "polling"))
    async with aiohttp.ClientSession() as web:
        sid = await open_session(web, house)
        target = URL(f"{house.url}/socket.io/").with_query(
            EIO="4", transport="polling", sid=sid
        )
        async with web.post(target, data=b"4" * 300_000) as answer:
            assert answer.status == 413
        assert sid in sessions(house)
        async with web.post(target, data=b"4" * 200_000) as answer:
            assert answer.status == 400
    await store(house, "page", 1)
    await pages.until("page", "event", "message")
    assert not pages.all("page", "disconnect")


async def test_a_page_that_posts_slowly_keeps_the_balancer_busy_not_the_bridge(
    house: House,
) -> None:
    """A bridge gives a body ten seconds; a bad network may need more than one packet."""
    async with aiohttp.ClientSession() as web:
        sid = await open_session(web, house)
        reader, writer = await asyncio.open_connection("127.0.0.1", house.balancer.port)
        writer.write(
            f"POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\n"
            f"Host: x\r\nContent-Length: 3\r\n\r\n4".encode()
        )
        await writer.drain()
        # Whatever comes later has overtaken it: the bridge knows nothing of it yet.
        await open_session(web, house)
        assert not sessions(house)[sid]._is_posting
        writer.write(b"1\x1e")
        async with asyncio.timeout(10):
            assert b" 200 " in await reader.readline()
        writer.close()


async def test_nothing_but_windows_comes_through(house: House) -> None:
    """Neither the rest of the public port nor a way to the operators' one."""
    async with aiohttp.ClientSession() as web:
        for path in ("/", "/api/users", "/metrics", "/console", "/health/live"):
            async with web.get(f"{house.url}{path}") as answer:
                assert answer.status == 404
        async with web.get(f"{house.url}/socket.io/socket.io.js") as answer:
            assert answer.status == 200
        async with web.get(f"{house.url}/health/ready") as answer:
            assert answer.status == 200


async def test_no_session_s_id_is_in_a_balancer_s_log(house: House) -> None:
    """Who knows it can read what comes for that window."""
    async with aiohttp.ClientSession() as web:
        sid = await open_session(web, house)
        target = URL(f"{house.url}/socket.io/").with_query(
            EIO="4", transport="polling", sid=sid
        )
        async with web.post(target, data=b"1"):
            pass
    await eventually(lambda: house.balancer.log().count("/socket.io/") == 2)
    assert sid not in house.balancer.log()


async def open_session(web: aiohttp.ClientSession, house: House) -> str:
    """Begin to poll by hand; returns the session's id."""
    target = URL(f"{house.url}/socket.io/").with_query(EIO="4", transport="polling")
    async with web.get(target) as answer:
        assert answer.status == 200
        return str(orjson.loads((await answer.read())[1:])["sid"])


def sessions(house: House) -> dict[str, EngineSession]:
    """Return the sessions of all bridges."""
    return {
        sid: session
        for each in house.bridges
        for sid, session in each.bridge.components.sockets.engine.sessions.items()
    }
