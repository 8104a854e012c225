"""Opening a store with retries, and sweeping it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.maintenance import InboxMaintenance
from bridge.inbox.memory.store import MemoryInbox
from tests.conftest import eventually

LOCKED = StoreUnavailableError("sqlite:x", "another process has locked it")
FULL = StoreUnavailableError("sqlite:x", "the disk is full")
WRONG = ConfigError(("BRIDGE_INBOX: the folder /x does not exist",))


class FlakyInbox(MemoryInbox):
    """A store that raises the given errors first and works afterwards."""

    def __init__(
        self,
        *,
        open_errors: Sequence[Exception] = (),
        sweep_errors: Sequence[Exception] = (),
    ) -> None:
        super().__init__(Retention(max_messages=1, max_age_s=1, dedupe_s=1))
        self.open_errors = list(open_errors)
        self.sweep_errors = list(sweep_errors)
        self.sweep_count = 0

    async def open(self) -> None:
        """Raise the next error, if one is left."""
        if self.open_errors:
            raise self.open_errors.pop(0)

    async def sweep(self) -> None:
        """Raise the next error, if one is left."""
        self.sweep_count += 1
        if self.sweep_errors:
            raise self.sweep_errors.pop(0)


@asynccontextmanager
async def maintained(inbox: FlakyInbox) -> AsyncIterator[InboxMaintenance]:
    """Maintain `inbox` until the block is left."""
    maintenance = InboxMaintenance(inbox, sweep_interval_s=0.0, pause_max_s=0.01)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(maintenance.run(), name="maintenance")
        try:
            yield maintenance
        finally:
            running.cancel()


async def test_a_problem_is_logged_once_until_it_changes() -> None:
    """An operator needs to know the problem, not the number of attempts."""
    inbox = FlakyInbox(open_errors=[LOCKED, LOCKED, LOCKED, FULL, FULL])
    with capture_logs() as lines:
        async with maintained(inbox) as maintenance:
            await maintenance.wait_until_open()

    assert [(line["event"], line.get("problem")) for line in lines] == [
        ("inbox.unavailable", str(LOCKED)),
        ("inbox.unavailable", str(FULL)),
        ("inbox.opened", None),
    ]


async def test_the_first_try_ends_with_a_failure_too() -> None:
    """The ports are opened then, so clients get an answer and retry later."""
    inbox = FlakyInbox(open_errors=[LOCKED] * 1000)
    async with maintained(inbox) as maintenance:
        await maintenance.wait_for_first_try(at_most_s=60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await maintenance.wait_until_open()


async def test_waiting_for_the_first_try_ends_after_its_time_limit() -> None:
    """A disk that hangs must not keep health probes without an answer."""
    maintenance = InboxMaintenance(FlakyInbox())

    await maintenance.wait_for_first_try(at_most_s=0.01)


async def test_a_wrong_setting_fails_the_start() -> None:
    """A wrong setting is not corrected while the bridge waits for it."""
    with pytest.raises(ConfigError):
        await InboxMaintenance(FlakyInbox(open_errors=[WRONG])).run()


async def test_a_setting_that_becomes_wrong_during_retries_is_retried() -> None:
    """An operator who repairs the folder may move it away for a moment."""
    inbox = FlakyInbox(open_errors=[LOCKED, WRONG, WRONG])
    async with maintained(inbox) as maintenance:
        await maintenance.wait_until_open()


async def test_a_failed_sweep_is_logged_and_sweeping_continues() -> None:
    """A bug in the sweep must not stop the delivery of messages."""
    inbox = FlakyInbox(sweep_errors=[ZeroDivisionError("a bug")])
    with capture_logs() as lines:
        async with maintained(inbox):
            await eventually(lambda: inbox.sweep_count > 1)

    (line,) = lines
    assert (line["event"], line["log_level"]) == ("inbox.sweep_failed", "error")
