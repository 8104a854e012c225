"""Open mode serves the page of the article; with tokens, `join` is refused."""

import json

import pytest

from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import raw_window
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.test_messages import TRANSPORTS, options

OPEN = Plan(is_open_mode=True)


@TRANSPORTS
async def test_the_page_of_the_article_works_unchanged(
    pages: Pages, transport: str
) -> None:
    """`socket.emit("join", {username})`, `socket.on("message", …)`, and nothing else."""
    async with open_server(OPEN) as server:
        await server.store("tom", {"code": 0, "data": "before"})
        pages.open("page", server.url, transports=[transport])
        await pages.until("page", "connect")
        assert not len(server.io.rooms)  # it has not named its user yet

        pages.command("send", "page", "join", {"username": "tom"})
        await pages.until("page", "event", "bridge:sync")
        await server.store("tom", {"code": 0, "data": "hello"})
        await server.store("jerry", {"code": 0, "data": "not for tom"})
        await server.store("tom", {"code": 0, "data": "bye"})

        await pages.until("page", "event", "message", count=3)
        assert [each["data"] for each in pages.data("page")] == [
            "before",
            "hello",
            "bye",
        ]
        assert len(pages.all("page", "connect")) == 1


async def test_join_calls_the_callback(pages: Pages) -> None:
    """Joining again as the same user is accepted, as another user it is refused."""
    async with open_server(OPEN) as server:
        pages.open("page", server.url, transports=["websocket"])
        await pages.until("page", "connect")
        for username in ("tom", "tom", "jerry"):
            pages.command("emit", "page", "join", {"username": username})
        await pages.until("page", "answer", count=3)
        answers = [answer for _, answer in pages.all("page", "answer")]

        assert answers[:2] == [{"ok": True}, {"ok": True}]
        assert answers[2]["code"] == "bad_user"
        assert len(server.windows("tom")) == 1
        assert not server.windows("jerry")


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
async def test_an_invalid_user_name_is_refused(argument: object) -> None:
    """A user must be a valid routing key."""
    async with open_server(OPEN) as server, raw_window(server) as window:
        assert (await window.connect()).startswith("40")
        await window.emit("join", argument, packet_id=1)
        answer = await window.answer(1)

        assert (answer["ok"], answer["code"]) == (False, "bad_user")
        assert not len(server.io.rooms)
        await window.emit("join", {"username": "tom"}, packet_id=2)
        assert await window.answer(2) == {"ok": True}


async def test_with_tokens_join_is_refused(server: RunningServer, pages: Pages) -> None:
    """The user comes from the verified token only."""
    await pages.connected("page", server.url, **options("alice", "websocket"))

    pages.command("emit", "page", "join", {"username": "bob"})

    answer = await pages.until("page", "answer", "join")
    assert (answer[0]["ok"], answer[0]["code"]) == (False, "not_open")
    assert not server.windows("bob")
    assert len(server.windows("alice")) == 1


async def test_in_open_mode_there_are_no_tokens_to_refresh() -> None:
    """Windows do not expire either."""
    async with open_server(OPEN) as server, raw_window(server) as window:
        await window.connect(token="nonsense")
        await window.emit("bridge:refresh", "x", packet_id=1)
        await window.emit("join", {"username": "tom"}, packet_id=2)
        assert await window.answer(2) == {"ok": True}
        await window.emit("bridge:refresh", "x", packet_id=3)
        assert (await window.answer(3))["code"] == "not_open"
        server.tick(calendar_later_s=10**9)
        assert len(server.windows("tom")) == 1


async def test_a_client_that_has_not_joined_yet_may_stay() -> None:
    """The page of the article asks for a name first."""
    async with open_server(OPEN) as server, raw_window(server) as window:
        await window.connect()
        server.tick(later_s=20)
        await window.emit("join", {"username": "tom"}, packet_id=1)
        assert await window.answer(1) == {"ok": True}
        await window.websocket.close()
        await eventually(lambda: not len(server.io.rooms))
        assert not server.sessions()


async def test_the_id_of_a_page_is_that_of_its_window_and_not_of_its_session() -> None:
    """Pages show `socket.id` and pass it on; the session id is a secret."""
    async with open_server(OPEN) as server, raw_window(server) as window:
        sid = json.loads((await window.connect())[2:])["sid"]
        (session,) = server.sessions()
        await window.emit("join", {"username": "tom"}, packet_id=1)
        await window.answer(1)

        assert sid != session.sid
        assert [each.sid for each in server.windows("tom")] == [sid]


async def test_limits_apply_in_open_mode_too() -> None:
    """Any client may claim any user, but the number of windows is limited."""
    async with (
        open_server(Plan(is_open_mode=True, windows_per_user=1)) as server,
        raw_window(server) as first,
        raw_window(server) as second,
    ):
        for window, ok in ((first, True), (second, False)):
            await window.connect()
            await window.emit("join", {"username": "tom"}, packet_id=1)
            answer = await window.answer(1)
            assert answer["ok"] is ok
        assert answer["code"] == "not_available"
