"""Who a window belongs to: the verified token says it, and nothing else can."""

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
from tests.integration.sockets.listeners import COOKIE, LEEWAY_S, Door, open_door
from tests.integration.sockets.raw_pages import RawWindow, raw_poller, raw_window
from tests.integration.sockets.test_messages import TRANSPORTS
from tests.tokens import claims, segment, token

FAR_KEY = "another-secret-of-64-bytes-or-more-that-the-bridge-does-not-know-of"


def unsigned() -> str:
    """Return a token that says `alg: none`."""
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
async def test_a_page_with_a_bad_token_learns_a_code_it_can_act_on(
    door: Door, pages: Pages, transport: str
) -> None:
    """`err.data.code` in the stock client; nothing is joined."""
    for name, (make, _) in BAD_TOKENS.items():
        auth = {} if make() is None else {"token": make()}
        pages.open(name, door.url, auth=auth, transports=[transport])
    for name, (_, code) in BAD_TOKENS.items():
        error = await pages.until(name, "connect_error")
        assert error[0]["data"] == {"code": code, "temporary": False}, name
        assert error[0]["message"]
        assert door.count("windows_refused_total", code=code) > 0
    assert not len(door.server.rooms)
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
    door: Door, transport: str, headers: Callable[[], dict[str, str]]
) -> None:
    """For programs, and for pages whose token no script may read."""
    if transport == "websocket":
        async with raw_window(door, headers=headers()) as window:
            assert (await window.connect()).startswith("40")
            assert len(door.windows("alice")) == 1
    else:
        async with raw_poller(door, headers=headers()) as page:
            await page.post("40")
            assert (await page.poll())[0].startswith("40")
            assert len(door.windows("alice")) == 1


async def test_the_token_in_auth_wins_over_the_cookie(door: Door) -> None:
    """The page says who it wants to be; the cookie is what the browser sends anyway."""
    headers = {"Cookie": f"{COOKIE}={token(sub='bob')}"}
    async with raw_window(door, headers=headers) as window:
        await window.join("alice")
        assert door.windows("alice")
        assert not door.windows("bob")


async def test_a_token_in_the_query_counts_for_nothing(door: Door) -> None:
    """It would stand in the log of every proxy."""
    async with raw_window(door, token=token(), auth=token()) as window:
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


async def test_each_user_has_a_room_of_its_own_whatever_the_name(
    door: Door, pages: Pages
) -> None:
    """No name is a pattern, a prefix of another one, or the same in another spelling."""
    for user in ODD_USERS:
        await pages.connected(
            user, door.url, auth={"token": token(sub=user)}, transports=["websocket"]
        )

    for number, user in enumerate(ODD_USERS):
        await door.store(user, number)

    for number, user in enumerate(ODD_USERS):
        await pages.until(user, "event", "message")
        assert pages.data(user) == [number]


async def test_a_session_id_as_a_user_reaches_no_window(door: Door) -> None:
    """For the library a session is a room as well (1.2, row 1)."""
    async with raw_window(door) as victim:
        reply = await victim.join("victim")
        await victim.synced()
        for name in (reply["sid"], victim.opening["sid"], f"user:{reply['sid']}"):
            async with raw_window(door) as attacker:
                await attacker.join(name)
                await attacker.synced()
                await door.store(name, "for the attacker")
                await attacker.receive_until('42["message"')
                await door.store("victim", "secret")
                assert '"secret"' in await victim.receive()
                await attacker.emit("ack", "x", packet_id=1)
                packets = await attacker.receive_until("431[")
                assert not any("secret" in packet for packet in packets)


def test_no_user_gets_what_is_anothers() -> None:
    """For any two names that are users."""

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
    """Let each of `users` have one window and one message."""
    async with open_door() as door, AsyncExitStack() as stack:
        windows = [await stack.enter_async_context(raw_window(door)) for _ in users]
        for user, window in zip(users, windows, strict=True):
            await window.join(user)
            await window.synced()
        for number, user in enumerate(users):
            await door.store(user, number)
        for number, window in enumerate(windows):
            assert json.loads((await window.receive())[2:])[1] == number


# --- the token's life


async def joined_until(window: RawWindow, life_s: int) -> None:
    """Become a window of alice whose token lives so long."""
    exp = int(time.time()) + life_s
    await window.connect(token=token(exp=exp))
    await window.synced()


async def test_a_window_is_warned_and_then_closed_when_its_token_ends(
    door: Door,
) -> None:
    """The life of a token is enforced on the living socket, on a fake clock."""
    async with raw_window(door) as window:
        await joined_until(window, 600)
        door.tick(calendar_later_s=500)
        door.tick(calendar_later_s=545)
        door.tick(calendar_later_s=550)
        assert json.loads((await window.receive())[2:]) == [
            "bridge:expiring",
            {"in_s": pytest.approx(54, abs=2)},
        ]
        door.tick(calendar_later_s=600 + LEEWAY_S - 2)
        assert door.windows("alice")

        door.tick(calendar_later_s=600 + LEEWAY_S + 2)

        packets, _ = await window.ended()
        notice = json.loads(packets[0][2:])
        assert notice[0] == "bridge:closing"
        assert (notice[1]["code"], notice[1]["reconnect"]) == ("expired", False)
        assert packets[1:] == ["41"]
        assert not door.windows("alice")


async def test_a_short_life_is_warned_of_at_half_of_it(door: Door) -> None:
    """So that even such a page has time to get a new token."""
    async with raw_window(door) as window:
        await joined_until(window, 20)
        door.tick(calendar_later_s=8)
        await window.emit("ack", "x", packet_id=1)
        assert (await window.receive()).startswith("431[")
        door.tick(calendar_later_s=11)
        assert (await window.receive()).startswith('42["bridge:expiring"')


async def test_the_stock_client_stays_away_when_its_token_has_expired(
    door: Door, pages: Pages
) -> None:
    """It would come back with the same token again and again."""
    pages.open("page", door.url, auth={"token": token()}, transports=["websocket"])
    await pages.until("page", "event", "bridge:sync")

    door.tick(calendar_later_s=700)

    closing = await pages.until("page", "event", "bridge:closing")
    assert closing[0]["code"] == "expired"
    assert await pages.until("page", "disconnect") == ["io server disconnect"]
    assert len(pages.all("page", "connect")) == 1


async def test_a_refreshed_window_stays(door: Door, pages: Pages) -> None:
    """With a new token of the same user, and it is warned again before that one ends."""
    await pages.connected(
        "page", door.url, auth={"token": token()}, transports=["websocket"]
    )
    door.tick(calendar_later_s=560)
    await pages.until("page", "event", "bridge:expiring")

    new = token(exp=int(time.time()) + 3600)
    pages.command("emit", "page", "bridge:refresh", new)

    answer = await pages.until("page", "answer", "bridge:refresh")
    assert answer[0]["ok"] is True
    assert answer[0]["expires_in_s"] == pytest.approx(3600, abs=5)
    (window,) = door.windows("alice")
    for later_s in (700, 3000, 3550):
        door.tick(calendar_later_s=later_s)
    await pages.until("page", "event", "bridge:expiring", count=2)
    assert door.windows("alice") == [window]


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
async def test_a_bad_refresh_is_refused_and_the_old_life_goes_on(
    door: Door, make: Callable[[], object], code: str
) -> None:
    """Neither longer nor shorter, and never another user's."""
    async with raw_window(door) as window:
        await joined_until(window, 600)
        before = door.windows("alice")[0].identity

        await window.emit("bridge:refresh", make(), packet_id=5)

        answer = await window.answer(5)
        assert (answer["ok"], answer["code"]) == (False, code)
        assert door.windows("alice")[0].identity == before
        assert not door.windows("bob")


async def test_a_token_within_its_leeway_never_counts_below_zero(door: Door) -> None:
    """Clocks differ: it is let in, warned, and closed when the leeway is over."""
    late = token(exp=int(time.time()) - 3)
    async with raw_window(door) as window:
        assert (await window.connect(token=late)).startswith("40")
        await window.synced()
        await window.emit("bridge:refresh", late, packet_id=1)
        assert await window.answer(1) == {"ok": True, "expires_in_s": 0}
        door.tick()
        assert '{"in_s":0}' in await window.receive()
        door.tick(calendar_later_s=LEEWAY_S)
        await eventually(lambda: not door.windows("alice"))
