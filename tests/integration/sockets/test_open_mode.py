"""Open mode: the article's page, word for word; and that it stays shut otherwise."""

import pytest

from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.listeners import Door, Plan, open_door
from tests.integration.sockets.raw_pages import raw_window
from tests.integration.sockets.test_messages import TRANSPORTS, options

OPEN = Plan(is_open_mode=True)


@TRANSPORTS
async def test_the_articles_page_works_word_for_word(
    pages: Pages, transport: str
) -> None:
    """`socket.emit("join", {username})`, `socket.on("message", …)`, and nothing else."""
    async with open_door(OPEN) as door:
        await door.store("tom", {"code": 0, "data": "before"})
        pages.open("page", door.url, transports=[transport])
        await pages.until("page", "connect")
        assert not len(door.server.rooms)  # it has yet to say who it is

        pages.command("send", "page", "join", {"username": "tom"})
        await pages.until("page", "event", "bridge:sync")
        await door.store("tom", {"code": 0, "data": "hello"})
        await door.store("jerry", {"code": 0, "data": "not for tom"})
        await door.store("tom", {"code": 0, "data": "bye"})

        await pages.until("page", "event", "message", count=3)
        assert [each["data"] for each in pages.data("page")] == [
            "before",
            "hello",
            "bye",
        ]
        assert len(pages.all("page", "connect")) == 1


async def test_join_answers_a_callback(pages: Pages) -> None:
    """Joining again is harmless, joining as somebody else is refused."""
    async with open_door(OPEN) as door:
        pages.open("page", door.url, transports=["websocket"])
        await pages.until("page", "connect")
        for username in ("tom", "tom", "jerry"):
            pages.command("emit", "page", "join", {"username": username})
        await pages.until("page", "answer", count=3)
        answers = [answer for _, answer in pages.all("page", "answer")]

        assert answers[:2] == [{"ok": True}, {"ok": True}]
        assert answers[2]["code"] == "bad_user"
        assert len(door.windows("tom")) == 1
        assert not door.windows("jerry")


@pytest.mark.parametrize(
    "argument",
    [
        None,
        "tom",
        [],
        {},
        {"username": None},
        {"username": 7},
        {"username": ""},
        {"username": "a\nb"},
        {"username": "\x00"},
        {"username": "a" * 256},
        {"username": ["tom"]},
        {"username": {"toString": "tom"}},
        {"user": "tom"},
    ],
    ids=ascii,
)
async def test_a_name_that_is_no_user_joins_nothing(argument: object) -> None:
    """Strings that a routing key could be, and nothing else."""
    async with open_door(OPEN) as door, raw_window(door) as window:
        assert (await window.connect()).startswith("40")
        await window.emit("join", argument, packet_id=1)
        answer = await window.answer(1)

        assert (answer["ok"], answer["code"]) == (False, "bad_user")
        assert not len(door.server.rooms)
        await window.emit("join", {"username": "tom"}, packet_id=2)
        assert await window.answer(2) == {"ok": True}


async def test_with_tokens_join_is_refused(door: Door, pages: Pages) -> None:
    """The room comes from the verified token alone."""
    await pages.connected("page", door.url, **options("alice", "websocket"))

    pages.command("emit", "page", "join", {"username": "bob"})

    answer = await pages.until("page", "answer", "join")
    assert (answer[0]["ok"], answer[0]["code"]) == (False, "not_open")
    assert not door.windows("bob")
    assert len(door.windows("alice")) == 1


async def test_in_open_mode_there_are_no_tokens_to_refresh() -> None:
    """Nor to expire."""
    async with open_door(OPEN) as door, raw_window(door) as window:
        await window.connect(token="nonsense")
        await window.emit("bridge:refresh", "x", packet_id=1)
        await window.emit("join", {"username": "tom"}, packet_id=2)
        assert await window.answer(2) == {"ok": True}
        await window.emit("bridge:refresh", "x", packet_id=3)
        assert (await window.answer(3))["code"] == "not_open"
        door.tick(calendar_later_s=10**9)
        assert len(door.windows("tom")) == 1


async def test_a_page_that_has_not_joined_may_wait() -> None:
    """The article's page asks its user for a name first."""
    async with open_door(OPEN) as door, raw_window(door) as window:
        await window.connect()
        door.tick(later_s=20)
        await window.emit("join", {"username": "tom"}, packet_id=1)
        assert await window.answer(1) == {"ok": True}
        await window.websocket.close()
        await eventually(lambda: not len(door.server.rooms))
        assert not door.sessions()


async def test_caps_hold_in_open_mode_too() -> None:
    """Anybody may be anybody, but not as often as they like."""
    async with (
        open_door(Plan(is_open_mode=True, windows_per_user=1)) as door,
        raw_window(door) as first,
        raw_window(door) as second,
    ):
        for window, ok in ((first, True), (second, False)):
            await window.connect()
            await window.emit("join", {"username": "tom"}, packet_id=1)
            answer = await window.answer(1)
            assert answer["ok"] is ok
        assert answer["code"] == "not_available"
