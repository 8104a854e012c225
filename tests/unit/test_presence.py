"""What a bridge tells the store about its windows: little, and again when it was lost."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from bridge.presence import PresenceReporter
from tests.conftest import eventually


class NotingStore:
    """Records what is noted; a call may wait, and may report that users are lost."""

    def __init__(self) -> None:
        self.calls: list[dict[str, int]] = []
        self.is_lost: Callable[[str], bool] | None = None
        self.may_return = asyncio.Event()
        self.may_return.set()

    async def note_presence(
        self,
        windows: Mapping[str, int],
        *,
        debounce_s: float,  # noqa: ARG002 - of the protocol
    ) -> Callable[[str], bool] | None:
        """Record the call."""
        self.calls.append(dict(windows))
        await self.may_return.wait()
        return self.is_lost

    @property
    def noted(self) -> list[dict[str, int]]:
        """The calls with users."""
        return [call for call in self.calls if call]


class WindowsHere:
    """The windows of a bridge, and the reporter that notes them in `store`."""

    def __init__(self) -> None:
        self.store = NotingStore()
        self.counts: dict[str, int] = {}
        self.reporter = PresenceReporter(
            self.store,
            windows_of=lambda user: self.counts.get(user, 0),
            users=self.counts.keys,
            debounce_s=15,
        )

    def set(self, **counts: int) -> None:
        """Change the windows of users."""
        self.counts |= counts
        for user in counts:
            self.reporter.note(user)


@asynccontextmanager
async def reporting() -> AsyncIterator[WindowsHere]:
    """Run a reporter."""
    here = WindowsHere()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(here.reporter.run())
        yield here
        running.cancel()


async def test_changes_are_written_together() -> None:
    """10,000 pages that connect at once cost a few writes."""
    async with reporting() as here:
        await eventually(lambda: len(here.store.calls) == 1)
        here.set(**{f"user{number}": 1 for number in range(10_000)})
        await eventually(lambda: len(here.store.noted) == 1)
        assert len(here.store.noted[0]) == 10_000


async def test_only_the_last_state_of_a_user_is_written() -> None:
    """Windows that come and go need no memory, also while the store does not answer."""
    async with reporting() as here:
        here.store.may_return.clear()
        await eventually(lambda: len(here.store.calls) == 1)
        for _ in range(1000):
            here.set(ann=1)
            here.set(ann=0)
            here.set(ben=0)
            here.set(ben=2)
        here.store.may_return.set()
        await eventually(lambda: len(here.store.noted) == 1)
        assert here.store.noted == [{"ann": 0, "ben": 2}]


async def test_the_store_is_called_without_changes() -> None:
    """It decides by the time only when it is called."""
    async with reporting() as here:
        await eventually(lambda: len(here.store.calls) >= 3)
        assert here.store.noted == []


async def test_users_whose_state_was_lost_are_noted_again() -> None:
    """A store that is back knows nothing of this bridge, or only what is old."""
    async with reporting() as here:
        here.set(ann=1, ben=1, cat=0)
        await eventually(lambda: len(here.store.noted) == 1)
        here.store.is_lost = lambda user: user != "ben"
        here.set(dan=1)
        await eventually(lambda: len(here.store.noted) == 2)
        here.store.is_lost = None
        here.set(ann=0)
        await eventually(lambda: len(here.store.noted) == 3)
        assert here.store.noted[2] == {"ann": 0, "cat": 0, "dan": 1}


async def test_many_users_are_noted_in_several_calls() -> None:
    """The event loop renders an event for each, and a store is busy with them."""
    async with reporting() as here:
        here.set(**{f"user{number}": 1 for number in range(25_000)})
        await eventually(lambda: sum(map(len, here.store.noted)) == 25_000)

        assert max(map(len, here.store.noted)) <= 10_000
        assert len({user for call in here.store.noted for user in call}) == 25_000
