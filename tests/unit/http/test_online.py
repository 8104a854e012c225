"""Users of several bridges in one list, whatever the others say."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bridge.core.fleet import Heard, OnlineUser, Reach
from bridge.core.journal import Journal
from bridge.http.online import Online
from bridge.sockets.window import Window

Windows = dict[str, int]
houses = st.lists(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 3)),
    min_size=1,
    max_size=4,
)


class Rooms:
    """As many windows for each user as it is told."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.users = windows.keys()

    def windows_of(self, user: str) -> Sequence[Window | None]:
        """Return some; nobody looks at them here."""
        return [None] * self.windows.get(user, 0)


class Sockets:
    """A bridge's windows."""

    def __init__(self, windows: Windows) -> None:
        self.rooms = Rooms(windows)

    def kick(self, user: str) -> int:
        """Count them."""
        return len(self.rooms.windows_of(user))


class Others:
    """The other bridges, in this process."""

    def __init__(self, *windows: Windows, also: Sequence[object] = ()) -> None:
        self._others = [online(each) for each in windows]
        self._also = also

    def serve(self, answer: Callable[[Mapping[str, Any]], Awaitable[object]]) -> None:
        """Nobody asks here."""

    async def ask(self, question: Mapping[str, Any]) -> Heard:
        """Ask each, and add what was given."""
        answers = [await other.answer(question) for other in self._others]
        return Heard([*answers, *self._also], 0)


def online(windows: Windows, others: Others | None = None) -> Online:
    """Return a bridge's desk."""
    sockets: Any = Sockets(windows)
    return Online(sockets, Journal(began_s=0), fleet=others)


@given(houses=houses, limit=st.integers(1, 4))
def test_pages_of_all_bridges_are_the_pages_of_one_list(
    houses: list[Windows], limit: int
) -> None:
    """Nobody is left out at the end of a page, whoever is at which bridge."""
    desk = online(houses[0], Others(*houses[1:]))
    whole = {
        name: sum(house.get(name, 0) for house in houses)
        for name in sorted({name for house in houses for name in house})
    }

    async def read() -> dict[str, int]:
        found: dict[str, int] = {}
        after = ""
        while True:
            page, reach = await desk.users_online(prefix="", after=after, limit=limit)
            assert reach == Reach(len(houses), 0)
            assert len(page) <= limit
            if not page:
                return found
            found |= {name: user.windows for name, user in page.items()}
            after = list(page)[-1]

    found = asyncio.run(read())
    assert (found, list(found)) == (whole, list(whole))


async def test_an_answer_that_cannot_be_read_counts_as_silence() -> None:
    """A bridge of another version may not know the question, or answer otherwise."""
    strange: list[object] = [None, [], {"users": "all"}, {"kicked": "some"}]
    desk = online({"ann": 1}, Others({"ann": 2, "bob": 1}, also=strange))

    users, reach = await desk.users_online(prefix="a", after="", limit=10)
    kicked = await desk.kick("ann")

    assert users == {"ann": OnlineUser(3, None)}
    assert reach == Reach(2, len(strange))
    assert kicked == (3, Reach(2, len(strange)))


async def test_a_question_of_a_later_version_is_not_answered() -> None:
    """None is what the asker counts as silence."""
    desk = online({"ann": 1})

    assert await desk.answer({"do": "dance"}) is None
    assert await desk.answer({"do": "kick", "user": 7}) is None
