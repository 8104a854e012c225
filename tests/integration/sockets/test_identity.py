"""A window belongs to the user of its verified token and to no other."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.enums import Refusal
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import (
    RawWindow,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.running_server import (
    COOKIE,
    LEEWAY_S,
    RunningServer,
    open_server,
)
from tests.integration.sockets.test_messages import TRANSPORTS
from tests.tokens import claims, segment, token

FAR_KEY = "another-secret-of-64-bytes-or-more-that-the-bridge-does-not-know-of"


def unsigned() -> str:
    """Return a token with `alg: none`."""
    return f"{segment({'alg': 'none', 'typ': 'JWT'})}.{segment(claims())}."


BAD_TOKENS: dict[str, tuple[Callable[[], object], Refusal]] = {
    "missing": (lambda: None, Refusal.TOKEN_MISSING),
    "empty": (lambda: "", Refusal.TOKEN_MISSING),
    "expired": (lambda: token(exp=int(time.time()) - 60), Refusal.TOKEN_EXPIRED),
    "wrong key": (
        lambda: jwt.encode(claims(), FAR_KEY, algorithm="HS256"),
        Refusal.TOKEN_INVALID,
    ),
    "none": (unsigned, Refusal.TOKEN_INVALID),
    "garbage": (lambda: "garbage", Refusal.TOKEN_INVALID),
    "no exp": (lambda: token(exp=None), Refusal.TOKEN_INVALID),
    "no sub": (lambda: token(sub=None), Refusal.TOKEN_INVALID),
    "empty sub": (lambda: token(sub=""), Refusal.TOKEN_INVALID),
    "long sub": (lambda: token(sub="a" * 256), Refusal.TOKEN_INVALID),
    "list": (lambda: ["alice"], Refusal.BAD_REQUEST),
    "object": (lambda: {"sub": "alice"}, Refusal.BAD_REQUEST),
}


@TRANSPORTS
async def test_a_bad_token_is_refused_with_a_code(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """The stock client has it in `err.data.code`; no room is joined."""
    for name, (make, _) in BAD_TOKENS.items():
        auth = {} if make() is None else {"token": make()}
        pages.open(name, server.url, auth=auth, transports=[transport])
    for name, (_, code) in BAD_TOKENS.items():
        error = await pages.until(name, "connect_error")
        assert error[0]["data"] == {"code": code, "temporary": False}, name
        assert error[0]["message"]
        assert server.count("windows_refused_total", code=code) > 0
    assert not len(server.io.rooms)
    assert not any(report[1] == "connect" for report in pages.reports)


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize(
    "headers",
    [
        lambda: {"Authorization": f"Bearer {token()}"},
        lambda: {"Authorization": f"bearer  {token()} "},
        lambda: {"Cookie": f"a=b; {COOKIE}={token()}; c=d"},
    ],
    ids=["bearer", "lower case", "cookie"],
)
async def test_a_header_or_a_cookie_may_carry_the_token(
    server: RunningServer, transport: str, headers: Callable[[], dict[str, str]]
) -> None:
    """For clients that are not browsers, and for pages whose scripts must not read the token."""
    if transport == "websocket":
        async with raw_window(server, headers=headers()) as window:
            assert (await window.connect()).startswith("40")
            assert len(server.windows("alice")) == 1
    else:
        async with raw_poller(server, headers=headers()) as page:
            await page.post("40")
            assert (await page.poll())[0].startswith("40")
            assert len(server.windows("alice")) == 1


@pytest.mark.parametrize("place", ["auth", "cookie", "header"])
@TRANSPORTS
async def test_a_long_token_is_accepted_wherever_it_is(
    server: RunningServer, place: str, transport: str
) -> None:
    """Identity providers list groups and roles in tokens: 9 KB and more."""
    long = token(filler="x" * 11_800)
    assert 15_500 < len(long) < 16_384
    auth = (
        json.dumps({"token": long, "filler": "x" * 10_000}) if place == "auth" else ""
    )
    headers = {"Cookie": f"{COOKIE}={long}", "Authorization": f"Bearer {long}"}
    header = {"cookie": "Cookie", "header": "Authorization"}.get(place)
    chosen = {header: headers[header]} if header else {}
    if transport == "websocket":
        async with raw_window(server, headers=chosen) as window:
            await window.send(f"40{auth}")
            assert (await window.receive()).startswith("40")
            await window.synced()
            await window.emit("nonsense", "x" * 17_000)
            assert (await window.ended())[1] == 1009  # only CONNECT may be so long
    else:
        async with raw_poller(server, headers=chosen) as page:
            assert await page.post(f"40{auth}") == 200
            assert (await page.poll())[0].startswith("40")
            assert await page.post("4" + "x" * 17_000) == 413


async def test_a_token_that_is_too_long_is_refused_with_a_code(
    server: RunningServer,
) -> None:
    """Not with the close of the connection, which explains nothing."""
    async with raw_window(server) as window:
        answer = await window.connect(token=token(filler="x" * 30_000))
    assert json.loads(answer[2:])["data"]["code"] == "token_invalid"
    assert "longer than 16384 characters" in answer


@pytest.mark.parametrize("line", [b"Cookie: " + b"secret" * 3000, b"secret"])
async def test_a_request_that_cannot_be_read_is_not_quoted(
    server: RunningServer, line: bytes
) -> None:
    """The response may end up in a log, and the request may hold a token."""
    async with raw_tcp(server) as connection:
        await connection.send(
            b"GET /socket.io/?secret HTTP/1.1\r\n" + line + b"\r\n\r\n"
        )
        response = await connection.read_to_end()
    assert (b" 431 " if len(line) > 100 else b" 400 ") in response.partition(b"\r\n")[0]
    assert b"secret" not in response
    assert b"aiohttp" not in response


async def test_a_number_as_sub_is_a_user(server: RunningServer) -> None:
    """Issuers with numeric user ids; RFC 7519 wants strings."""
    async with raw_window(server) as window:
        await window.send("40" + json.dumps({"token": token(sub=4711)}))
        assert (await window.receive()).startswith("40")
        assert len(server.windows("4711")) == 1


async def test_the_token_in_auth_takes_precedence_over_the_cookie(
    server: RunningServer,
) -> None:
    """The page chooses the token in `auth`; the browser sends the cookie in any case."""
    headers = {"Cookie": f"{COOKIE}={token(sub='bob')}"}
    async with raw_window(server, headers=headers) as window:
        await window.join("alice")
        assert server.windows("alice")
        assert not server.windows("bob")


async def test_a_token_in_the_query_is_ignored(server: RunningServer) -> None:
    """Every proxy would log it."""
    async with raw_window(server, token=token(), auth=token()) as window:
        answer = await window.connect()
    assert '"token_missing"' in answer


# --- rooms

ODD_USERS = [
    "a.b.c",
    "#",
    "*",
    "alice.#",
    "'; drop table users; --",
    '"quoted"',
    "zoë",
    "👩‍👩‍👧",
    "__proto__",
    "constructor",
    "user:alice",
    "/",
    " ",
    "a" * 255,
    "alic",
    "alice",
    "alicee",
    "Alice",
    "alice ",
    "\u202eecila",
    "true",
    "0",
    "e\u0301",
    "\u00e9",
]


async def test_each_user_has_a_separate_room_for_any_name(
    server: RunningServer, pages: Pages
) -> None:
    """A name is not a pattern, not a prefix, and not equal to another spelling."""
    for user in ODD_USERS:
        await pages.connected(
            user, server.url, auth={"token": token(sub=user)}, transports=["websocket"]
        )

    for number, user in enumerate(ODD_USERS):
        await server.store(user, number)

    for number, user in enumerate(ODD_USERS):
        await pages.until(user, "event", "message")
        assert pages.data(user) == [number]


async def test_a_session_id_as_a_user_reaches_no_window(server: RunningServer) -> None:
    """In python-socketio each session id is also a room."""
    async with raw_window(server) as victim:
        reply = await victim.join("victim")
        await victim.synced()
        for name in (reply["sid"], victim.opening["sid"], f"user:{reply['sid']}"):
            async with raw_window(server) as attacker:
                await attacker.join(name)
                await attacker.synced()
                await server.store(name, "for the attacker")
                await attacker.receive_until('42["message"')
                await server.store("victim", "secret")
                assert '"secret"' in await victim.receive()
                await attacker.emit("ack", "x", packet_id=1)
                packets = await attacker.receive_until("431[")
                assert not any("secret" in packet for packet in packets)


def test_no_user_gets_the_messages_of_another() -> None:
    """For any two valid users."""

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(NAMES, min_size=2, max_size=5, unique=True))
    def try_out(users: list[str]) -> None:

        asyncio.run(each_gets_its_own(users))

    try_out()


NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("ab.:#*"),
    min_size=1,
    max_size=20,
)


async def each_gets_its_own(users: list[str]) -> None:
    """Give each of `users` one window and one message."""
    async with open_server() as server, AsyncExitStack() as stack:
        windows = [await stack.enter_async_context(raw_window(server)) for _ in users]
        for user, window in zip(users, windows, strict=True):
            await window.join(user)
            await window.synced()
        for number, user in enumerate(users):
            await server.store(user, number)
        for number, window in enumerate(windows):
            assert json.loads((await window.receive())[2:])[1] == number


# --- the expiry of the token


async def joined_until(window: RawWindow, life_s: int) -> None:
    """Connect as a window of alice whose token expires in `expires_in_s`."""
    exp = int(time.time()) + life_s
    await window.connect(token=token(exp=exp))
    await window.synced()


async def test_a_window_is_warned_and_then_closed_when_its_token_expires(
    server: RunningServer,
) -> None:
    """The expiry is enforced on the open connection; the test moves the clock."""
    async with raw_window(server) as window:
        await joined_until(window, 600)
        server.tick(calendar_later_s=500)
        server.tick(calendar_later_s=545)
        server.tick(calendar_later_s=550)
        assert json.loads((await window.receive())[2:]) == [
            "bridge:expiring",
            {"in_s": pytest.approx(54, abs=2)},
        ]
        server.tick(calendar_later_s=600 + LEEWAY_S - 2)
        assert server.windows("alice")

        server.tick(calendar_later_s=600 + LEEWAY_S + 2)

        packets, _ = await window.ended()
        notice = json.loads(packets[0][2:])
        assert notice[0] == "bridge:closing"
        assert (notice[1]["code"], notice[1]["reconnect"]) == ("expired", False)
        assert packets[1:] == ["41"]
        assert not server.windows("alice")


async def test_a_short_lived_token_is_warned_of_at_half_of_its_life(
    server: RunningServer,
) -> None:
    """So that there is time to get a new token."""
    async with raw_window(server) as window:
        await joined_until(window, 20)
        server.tick(calendar_later_s=8)
        await window.emit("ack", "x", packet_id=1)
        assert (await window.receive()).startswith("431[")
        server.tick(calendar_later_s=11)
        assert (await window.receive()).startswith('42["bridge:expiring"')


async def test_the_stock_client_does_not_reconnect_with_an_expired_token(
    server: RunningServer, pages: Pages
) -> None:
    """It would reconnect with the same token repeatedly."""
    pages.open("page", server.url, auth={"token": token()}, transports=["websocket"])
    await pages.until("page", "event", "bridge:sync")

    server.tick(calendar_later_s=700)

    closing = await pages.until("page", "event", "bridge:closing")
    assert closing[0]["code"] == "expired"
    assert await pages.until("page", "disconnect") == ["io server disconnect"]
    assert len(pages.all("page", "connect")) == 1


async def test_a_window_with_a_refreshed_token_stays(
    server: RunningServer, pages: Pages
) -> None:
    """It is warned again before the new token expires."""
    await pages.connected(
        "page", server.url, auth={"token": token()}, transports=["websocket"]
    )
    server.tick(calendar_later_s=560)
    await pages.until("page", "event", "bridge:expiring")

    new = token(exp=int(time.time()) + 3600)
    pages.command("emit", "page", "bridge:refresh", new)

    answer = await pages.until("page", "answer", "bridge:refresh")
    assert answer[0]["ok"] is True
    assert answer[0]["expires_in_s"] == pytest.approx(3600, abs=5)
    (window,) = server.windows("alice")
    for later_s in (700, 3000, 3550):
        server.tick(calendar_later_s=later_s)
    await pages.until("page", "event", "bridge:expiring", count=2)
    assert server.windows("alice") == [window]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: token(sub="bob"), "other_user"),
        (lambda: token(exp=int(time.time()) - 60), "token_expired"),
        (lambda: "garbage", "token_invalid"),
        (lambda: "", "token_invalid"),
        (lambda: None, "token_invalid"),
        (lambda: {"token": token()}, "token_invalid"),
        (lambda: ["x"] * 100, "token_invalid"),
        (unsigned, "token_invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_bad_refresh_is_refused_and_the_old_token_stays_in_effect(
    server: RunningServer, make: Callable[[], object], code: str
) -> None:
    """The expiry does not change, and the user never does."""
    async with raw_window(server) as window:
        await joined_until(window, 600)
        before = server.windows("alice")[0].identity

        await window.emit("bridge:refresh", make(), packet_id=5)

        answer = await window.answer(5)
        assert (answer["ok"], answer["code"]) == (False, code)
        assert server.windows("alice")[0].identity == before
        assert not server.windows("bob")


async def test_a_token_within_its_leeway_has_zero_seconds_left(
    server: RunningServer,
) -> None:
    """Clocks differ: the window is admitted, warned, and closed when the leeway is over."""
    late = token(exp=int(time.time()) - 3)
    async with raw_window(server) as window:
        assert (await window.connect(token=late)).startswith("40")
        await window.synced()
        await window.emit("bridge:refresh", late, packet_id=1)
        assert await window.answer(1) == {"ok": True, "expires_in_s": 0}
        server.tick()
        assert '{"in_s":0}' in await window.receive()
        server.tick(calendar_later_s=LEEWAY_S)
        await eventually(lambda: not server.windows("alice"))
