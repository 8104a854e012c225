"""Keeping a store: one that cannot be opened is waited for, and told about once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.maintenance import StoreKeeper
from tests.conftest import eventually

LOCKED = StoreUnavailableError("sqlite:x", "another process has locked it")
FULL = StoreUnavailableError("sqlite:x", "the disk is full")
WRONG = ConfigError(("BRIDGE_INBOX: the folder /x does not exist",))


@dataclass
class FakeStore:
    """Raises what `failures` and `sweeps` hold first; then all is well."""

    failures: list[Exception] = field(default_factory=list)
    sweeps: list[Exception] = field(default_factory=list)
    swept: int = 0

    async def open(self) -> None:
        """Fail or not."""
        if self.failures:
            raise self.failures.pop(0)

    async def sweep(self) -> None:
        """Fail or not."""
        self.swept += 1
        if self.sweeps:
            raise self.sweeps.pop(0)


@asynccontextmanager
async def keeping(store: FakeStore) -> AsyncIterator[StoreKeeper]:
    """Keep `store` until the block is left."""
    keeper = StoreKeeper(store, sweep_each_s=0.0)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(keeper.run(), name="keeper")
        try:
            yield keeper
        finally:
            running.cancel()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.inbox.maintenance._PAUSE_MAX_S", 0.01)


async def test_a_problem_is_told_once_and_a_new_one_again() -> None:
    """An operator wants to know what is the matter, not how often it was tried."""
    store = FakeStore(failures=[LOCKED, LOCKED, LOCKED, FULL, FULL])
    with capture_logs() as lines:
        async with keeping(store) as keeper:
            await keeper.wait_until_open()

    assert [(line["event"], line.get("problem")) for line in lines] == [
        ("inbox.waiting", str(LOCKED)),
        ("inbox.waiting", str(FULL)),
        ("inbox.goes_on", None),
    ]


async def test_the_first_try_is_over_whatever_came_of_it() -> None:
    """The doors open then: windows are told to come again instead of nothing."""
    store = FakeStore(failures=[LOCKED] * 1000)
    async with keeping(store) as keeper:
        await keeper.wait_for_first_try(at_most_s=60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await keeper.wait_until_open()


async def test_a_disk_that_hangs_does_not_keep_the_doors_shut() -> None:
    """There is nothing to be told, and probes want an answer all the same."""
    keeper = StoreKeeper(FakeStore())

    await keeper.wait_for_first_try(at_most_s=0.01)


async def test_a_wrong_setting_refuses_the_start() -> None:
    """Nobody mends a slip of the pen while the bridge waits for it."""
    with pytest.raises(ConfigError):
        await StoreKeeper(FakeStore(failures=[WRONG])).run()


async def test_what_looks_wrong_while_it_waits_is_waited_for() -> None:
    """Somebody who mends the folder moves it away and back."""
    async with keeping(FakeStore(failures=[LOCKED, WRONG, WRONG])) as keeper:
        await keeper.wait_until_open()


async def test_a_sweep_that_fails_is_told_and_the_next_one_is_made() -> None:
    """A bug in tidying up must not end the carrying of messages."""
    store = FakeStore(sweeps=[ZeroDivisionError("a bug")])
    with capture_logs() as lines:
        async with keeping(store):
            await eventually(lambda: store.swept > 1)

    (line,) = lines
    assert (line["event"], line["log_level"]) == ("inbox.sweep_failed", "error")
