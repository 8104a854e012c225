"""The users of the operator's API, also while the store is unavailable."""

from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web

from bridge.core.admin_views import (
    InboxSummary,
    KeptMessage,
    SearchResult,
    WaitingEvents,
)
from bridge.core.contracts.operator.users import PresenceStep, WindowFacts
from bridge.core.fleet import THIS_BRIDGE, Coverage, OnlineUser, UserWindows
from bridge.core.message import Message
from bridge.core.position import user_epoch
from bridge.core.receipts import Receipt
from bridge.core.replay import InboxState
from bridge.enums import PresenceChange
from bridge.errors import StoreUnavailableError
from bridge.http.api.endpoint import Api
from bridge.http.api.users import add_user_routes
from bridge.http.responses import answer_with_problems
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from tests.unit.http.conftest import Client, Open, OpenGuard

RETENTION = Retention(max_messages=10, max_age_s=100, dedupe_s=10)
WINDOW = WindowFacts(
    bridge="", sid_short="s", transport="polling", address="::1", connected_s=1.0, offset=3,
    acks="auto", live=True, waiting_bytes=0,
)  # fmt: skip


class FakeInboxes:
    """Inboxes of some users, in a store that can be made unavailable."""

    def __init__(self, *users: str) -> None:
        self.names = users
        self.is_unavailable = False

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Return a page of inboxes by user."""
        return [
            await self._inbox(name)
            for name in sorted(self.names)
            if name > after and name.startswith(prefix)
        ][:limit]

    async def user(self, user: str) -> InboxSummary | None:
        """Return one inbox, if there is one."""
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

    async def open_receipts(self, user: str, message_id: str) -> Sequence[Receipt]:
        """Fail: these tests trace no message."""
        raise NotImplementedError

    async def waiting_events(self, user: str, message_id: str) -> WaitingEvents:
        """Fail: these tests trace no message."""
        raise NotImplementedError

    async def _inbox(self, user: str) -> InboxSummary:
        self._check()
        return InboxSummary(user, InboxState("e", first=2, last=5, delivered=4))

    def _check(self) -> None:
        if self.is_unavailable:
            raise StoreUnavailableError("sqlite:x", "the disk is full")


class FakeFleet:
    """Users with one window each, on this bridge alone."""

    def __init__(self, *users: str) -> None:
        self.names = users
        self.presence: list[PresenceStep] = []

    async def users_online(
        self, *, prefix: str, after: str, limit: int
    ) -> tuple[dict[str, OnlineUser], Coverage]:
        """Return a page of users by name."""
        names = [n for n in self.names if n > after and n.startswith(prefix)]
        return {
            name: OnlineUser(1, None) for name in sorted(names)[:limit]
        }, THIS_BRIDGE

    async def windows_of(self, user: str) -> UserWindows:
        """Return the one window, if there is one."""
        windows = [WINDOW] if user in self.names else []
        return UserWindows(windows, None, THIS_BRIDGE, self.presence)

    async def window_counts(
        self, users: Sequence[str]
    ) -> tuple[dict[str, int], Coverage]:
        """Return one for each of these users who has a window."""
        return {user: 1 for user in users if user in self.names}, THIS_BRIDGE

    def last_connect_s(self, user: str) -> float | None:
        """Return nothing: the journal is empty."""
        assert user
        return None

    async def kick(self, user: str) -> tuple[int, Coverage]:
        """Return the number of windows."""
        return int(user in self.names), THIS_BRIDGE


async def open_users(
    open_app: Open,
    inboxes: FakeInboxes,
    fleet: FakeFleet,
    reader: MemoryInbox | None = None,
) -> Client:
    """Serve users without authentication."""
    inbox = reader or MemoryInbox(RETENTION)
    app = web.Application(middlewares=[answer_with_problems])
    fake_fleet: Any = fleet
    add_user_routes(Api(app, OpenGuard()), inboxes, fake_fleet, inbox)
    return await open_app(app)


async def test_a_list_contains_users_with_a_window_or_an_inbox(
    open_app: Open,
) -> None:
    """Sorted by name, each once, also across pages."""
    client = await open_users(
        open_app, FakeInboxes("a", "c", "e"), FakeFleet("b", "c", "f")
    )

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


async def test_a_store_that_is_unavailable_hides_what_is_in_it_alone(
    open_app: Open,
) -> None:
    """The inbox's fields are null; a list that needs the store is a 503."""
    inboxes = FakeInboxes("ann", "bob")
    client = await open_users(open_app, inboxes, FakeFleet("ann"))
    async with client.get("/api/users/ann") as response:
        before = await response.json()
    inboxes.is_unavailable = True

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


async def test_the_position_of_a_user_is_the_end_of_the_inbox(open_app: Open) -> None:
    """A page that connects with it receives what is stored after it, and nothing else."""
    inbox = MemoryInbox(RETENTION)
    client = await open_users(open_app, FakeInboxes(), FakeFleet(), inbox)
    epoch = user_epoch(inbox.epoch, "ann")

    answer = await client.get("/api/users/ann/position")
    assert (answer.status, await answer.json()) == (200, {"position": f"{epoch}-0"})

    await inbox.append([Message("ann", "message", b"1", 1e12)])
    answer = await client.get("/api/users/ann/position")
    assert await answer.json() == {"position": f"{epoch}-1"}


async def test_a_user_who_had_a_window_is_known(open_app: Open) -> None:
    """Also without a message: operators ask when the user was there."""
    fleet = FakeFleet()
    client = await open_users(open_app, FakeInboxes(), fleet)
    async with client.get("/api/users/ann") as response:
        assert response.status == 404

    step = PresenceStep(at_s=1.0, change=PresenceChange.DISCONNECTED, bridge="one")
    fleet.presence.append(step)
    async with client.get("/api/users/ann") as response:
        answer = await response.json()

    async with client.get("/api/users/ann/inbox") as response:
        assert (response.status, (await response.json())["items"]) == (200, [])

    assert answer["presence"] == [
        {"at_s": 1.0, "change": "disconnected", "bridge": "one"}
    ]


async def test_presence_is_answered_in_the_order_of_the_request(open_app: Open) -> None:
    """Each user as often as asked, also without the store."""
    inboxes = FakeInboxes("bob")
    inboxes.is_unavailable = True
    client = await open_users(open_app, inboxes, FakeFleet("ann", "a&b"))

    async with client.get(
        "/api/presence?user=bob&user=a%26b&user=ann&user=bob"
    ) as response:
        answer = await response.json()

    assert answer == {
        "items": [
            {"user": "bob", "online": False, "windows": 0},
            {"user": "a&b", "online": True, "windows": 1},
            {"user": "ann", "online": True, "windows": 1},
            {"user": "bob", "online": False, "windows": 0},
        ],
        "bridges": 1,
        "silent": 0,
    }


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("", 422, "user is missing"),
        ("?user=ann&user=", 422, "user.1 is empty"),
        ("?user=a%0Ab", 422, "user.0 contains"),
        ("?users=ann", 400, "'users' is not a parameter"),
    ],
)
async def test_a_bad_question_for_presence_is_a_problem(
    open_app: Open, query: str, status: int, detail: str
) -> None:
    """With the name of the parameter, and the place in the list."""
    client = await open_users(open_app, FakeInboxes(), FakeFleet())

    async with client.get(f"/api/presence{query}") as response:
        answer = await response.json()

    assert response.status == status
    assert answer["detail"].startswith(detail)
