"""Users for operators while the store is away: who is online is worth knowing all the same."""

from collections.abc import Sequence

from aiohttp import web

from bridge.core.admin_views import InboxSummary, KeptMessage, SearchResult
from bridge.core.contracts.operator.users import WindowFacts
from bridge.core.fleet import ALONE, OnlineUser, Reach, Seen
from bridge.core.replay import InboxState
from bridge.errors import StoreUnavailableError
from bridge.http.api.endpoint import Api
from bridge.http.api.users import add_user_routes
from bridge.http.problems import answer_with_problems
from tests.unit.http.conftest import Client, Open

WINDOW = WindowFacts(
    bridge="", sid_short="s", transport="polling", address="::1", connected_s=1.0, offset=3,
    acks="auto", live=True, waiting_bytes=0,
)  # fmt: skip


class Shelf:
    """Inboxes, or none because the store is away."""

    def __init__(self, *users: str) -> None:
        self.names = users
        self.is_away = False

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Return users by name."""
        return [
            await self._inbox(name)
            for name in sorted(self.names)
            if name > after and name.startswith(prefix)
        ][:limit]

    async def user(self, user: str) -> InboxSummary | None:
        """Return one."""
        self._check()
        return await self._inbox(user) if user in self.names else None

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """Fail: these tests list no messages."""
        raise NotImplementedError

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """Fail: these tests search no message."""
        raise NotImplementedError

    async def _inbox(self, user: str) -> InboxSummary:
        self._check()
        return InboxSummary(user, InboxState("e", first=2, last=5, delivered=4))

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailableError("sqlite:x", "the disk is full")


class Lobby:
    """Users with one window each."""

    def __init__(self, *users: str) -> None:
        self.names = users

    async def users_online(
        self, *, prefix: str, after: str, limit: int
    ) -> tuple[dict[str, OnlineUser], Reach]:
        """Return them."""
        names = [n for n in self.names if n > after and n.startswith(prefix)]
        return {name: OnlineUser(1, None) for name in sorted(names)[:limit]}, ALONE

    async def windows_of(self, user: str) -> Seen:
        """Return the one."""
        return Seen([WINDOW] if user in self.names else [], None, ALONE)

    def last_connect_s(self, user: str) -> float | None:
        """Nobody remembers."""
        assert user
        return None

    async def kick(self, user: str) -> tuple[int, Reach]:
        """Count them."""
        return int(user in self.names), ALONE


async def door(open_app: Open, shelf: Shelf, lobby: Lobby) -> Client:
    """Serve them without a guard."""
    app = web.Application(middlewares=[answer_with_problems])
    add_user_routes(Api(app, lambda handler: handler), shelf, lobby)
    return await open_app(app)


async def test_pages_join_those_who_are_online_and_those_who_have_an_inbox(
    open_app: Open,
) -> None:
    """By name, each once, whichever way they are known."""
    client = await door(open_app, Shelf("a", "c", "e"), Lobby("b", "c", "f"))

    pages: list[str] = []
    cursor = ""
    while True:
        async with client.get(f"/api/users?limit=2{cursor}") as response:
            page = await response.json()
        pages.append("".join(item["user"] for item in page["items"]))
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"

    assert pages == ["ab", "ce", "f"]


async def test_a_store_that_is_away_hides_what_is_in_it_alone(open_app: Open) -> None:
    """Null for what it would say; a list that needs it is a 503."""
    shelf = Shelf("ann", "bob")
    client = await door(open_app, shelf, Lobby("ann"))
    async with client.get("/api/users/ann") as response:
        before = await response.json()
    shelf.is_away = True

    async with client.get("/api/users?online=true") as response:
        (ann,) = (await response.json())["items"]
    async with client.get("/api/users/ann") as response:
        detail = await response.json()
    async with client.get("/api/users") as response:
        assert response.status == 503
        assert "the disk is full" in (await response.json())["detail"]
    async with client.get("/api/users/ann/inbox") as response:
        assert response.status == 503

    assert (before["depth"], before["waiting"], before["last"]) == (4, 1, 5)
    assert (ann["windows"], ann["depth"], ann["waiting"], ann["last"]) == (
        1,
        None,
        None,
        None,
    )
    assert (len(detail["windows"]), detail["delivered"]) == (1, None)
