"""What is read from a file to be carried, and the walk from one store to the other."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bridge.core.message import Message, Stored
from bridge.enums import SyncReason
from bridge.errors import ConfigError, MigrationRefusedError, StoreInUseError
from bridge.inbox.contract import Retention
from bridge.inbox.migration.migrate import migrate
from bridge.inbox.migration.model import (
    InboxCount,
    InboxNumbers,
    MigrationBatch,
    MigrationTotals,
    SourceIdentity,
)
from bridge.inbox.sqlite.migration_source import SqliteSource
from bridge.inbox.sqlite.store import SqliteInbox
from tests.contract.inbox.files import Clock, Opened
from tests.inbox_files import Filling, fill

RETENTION = Retention(max_messages=1000, max_age_s=1e6, dedupe_s=600)


class BrokenError(Exception):
    """Stands for a kill -9 in the middle."""


@dataclass
class Shelf:
    """A target in memory that holds what was put, as the protocol has it."""

    description: str = "shelf:"
    inboxes: dict[str, InboxNumbers] = field(default_factory=dict)
    messages: dict[str, dict[int, Stored]] = field(default_factory=dict)
    ids: dict[str, dict[str, float]] = field(default_factory=dict)
    identity: SourceIdentity | None = None
    upto: int = 0
    is_done: bool = False
    batch_count: int = 0
    breaks_after: int | None = None

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def progress(self, identity: SourceIdentity) -> int | None:
        """Go on where it was."""
        if self.identity not in {None, identity}:
            raise MigrationRefusedError(self.description, "something else is there")
        return None if self.is_done else self.upto

    async def begin(self, identity: SourceIdentity) -> None:
        """Note it."""
        self.identity = identity

    async def write(self, batch: MigrationBatch) -> None:
        """Keep it, and note how far it is only where it does not break."""
        self.batch_count += 1
        for part in batch.parts:
            user = part.inbox.user
            self.inboxes[user] = part.inbox
            kept = self.messages.setdefault(user, {})
            for stored in part.messages:
                assert kept.get(stored.offset, stored) == stored
                kept[stored.offset] = stored
            self.ids.setdefault(user, {}).update(part.ids)
        if self.batch_count == self.breaks_after:
            raise BrokenError
        self.upto = batch.upto

    async def counts(self, users: Sequence[str]) -> Sequence[InboxCount]:
        """Say what is there."""
        return [
            InboxCount(self.inboxes[user], len(self.messages[user])) for user in users
        ]

    async def finish(self, identity: SourceIdentity) -> None:
        """Note that it is done."""
        assert identity == self.identity
        self.is_done = True


def quiet(activity: str, done: MigrationTotals, totals: MigrationTotals) -> None:
    """Say nothing."""


def source(path: Path, now: Callable[[], float] | None = None) -> SqliteSource:
    options = {} if now is None else {"now": now}
    return SqliteSource(str(path), dedupe_s=600, **options)


async def test_all_that_a_file_holds_arrives_as_a_bridge_would_read_it(
    path: Path,
) -> None:
    """Offsets, data, ids, deadlines, marks: a page must not notice on which store it is."""
    await fill(str(path), Filling(messages=5000, users=40), RETENTION)
    shelf = Shelf()

    result = await migrate(source(path), shelf, is_dry_run=False, on_progress=quiet)

    assert result.is_done
    assert result.source == MigrationTotals(users=40, messages=5000, ids=1250)
    assert replace(result.copied, bytes=0) == result.source
    inbox = SqliteInbox(str(path), RETENTION)
    await inbox.open()
    try:
        assert result.epoch == inbox.epoch
        for user, carried in shelf.inboxes.items():
            state = await inbox.state(user)
            assert (carried.first, carried.last) == (state.first, state.last)
            assert carried.delivered == state.delivered > 0
            page = await inbox.read(
                user, after=0, max_messages=10_000, max_bytes=1 << 30
            )
            assert list(shelf.messages[user].values()) == page.messages
    finally:
        await inbox.close()


async def test_what_is_gone_from_an_inbox_is_told_with_its_reason(
    path: Path, opened: Opened, clock: Clock
) -> None:
    """A page that comes back must learn what it missed, from the new store as well."""
    async with opened() as inbox:
        for user, count in (("limit", 300), ("age", 30), ("none", 5)):
            messages = [Message(user, "m", b"%d" % n, clock()) for n in range(count)]
            await inbox.append(messages)
        clock.now_s += 900
        for user in ("limit", "age"):
            await inbox.append([Message(user, "m", b"young", clock())])
        await inbox.sweep()  # lets the index come after
        clock.now_s += 200
        await inbox.sweep()  # what is over its age goes
    shelf = Shelf()

    await migrate(source(path, clock), shelf, is_dry_run=False, on_progress=quiet)

    for user, offset in (("limit", 301), ("age", 31)):
        inbox_ = shelf.inboxes[user]
        assert (inbox_.first, inbox_.last) == (offset, offset)
        assert inbox_.trimmed_for is SyncReason.EXPIRED
        assert list(shelf.messages[user]) == [offset]
    assert (shelf.inboxes["none"].first, shelf.inboxes["none"].last) == (6, 5)
    assert shelf.messages["none"] == {}


async def test_what_was_over_the_limit_is_not_carried(
    path: Path, opened: Opened, clock: Clock
) -> None:
    """It was gone for every page already."""
    async with opened(round_entries=3) as inbox:
        for start in range(0, 500, 50):
            numbers = range(start, start + 50)
            await inbox.append(
                [Message("ann", "m", b"%d" % n, clock()) for n in numbers]
            )
    shelf = Shelf()

    await migrate(source(path, clock), shelf, is_dry_run=False, on_progress=quiet)

    ann = shelf.inboxes["ann"]
    assert 100 <= ann.last - ann.first + 1 == len(shelf.messages["ann"]) <= 150
    assert ann.trimmed_for is SyncReason.LIMIT


async def test_only_ids_within_the_window_are_carried(
    path: Path, opened: Opened, clock: Clock
) -> None:
    """Older ones would be refused by no store any more."""
    async with opened() as inbox:
        await inbox.append([Message("ann", "m", b"1", clock(), "old")])
        clock.now_s += 700
        await inbox.append([Message("ann", "m", b"2", clock(), "new")])
    shelf = Shelf()

    await migrate(source(path, clock), shelf, is_dry_run=False, on_progress=quiet)

    assert shelf.ids["ann"] == {"new": clock()}


@pytest.mark.parametrize("breaks_after", [1, 2, 4])
async def test_a_carry_that_was_interrupted_goes_on_and_ends_in_the_same(
    path: Path, breaks_after: int
) -> None:
    """It repeats at most one batch, and what it repeats changes nothing."""
    await fill(str(path), Filling(messages=5000, users=40), RETENTION)
    whole, broken = Shelf(), Shelf(breaks_after=breaks_after)
    await migrate(source(path), whole, is_dry_run=False, on_progress=quiet)

    with pytest.raises(BrokenError):
        await migrate(source(path), broken, is_dry_run=False, on_progress=quiet)
    result = await migrate(source(path), broken, is_dry_run=False, on_progress=quiet)

    assert result.is_done
    assert broken.batch_count <= whole.batch_count + 2
    assert broken.messages == whole.messages
    assert broken.inboxes == whole.inboxes
    assert broken.ids == whole.ids


async def test_one_large_inbox_travels_in_loads_of_bounded_size(path: Path) -> None:
    """Memory is bounded by the batch, not by the user who has most."""
    filling = Filling(messages=3000, users=1, data_bytes=2000, with_ids=1)
    await fill(str(path), filling, replace(RETENTION, max_messages=5000))
    reading = source(path)
    reading.open()
    try:
        batches = list(reading.batches(after=0))
    finally:
        reading.close()

    for batch in batches:
        messages = [m for part in batch.parts for m in part.messages]
        assert sum(len(each.message.data) for each in messages) <= 1 << 20
        assert sum(len(part.ids) for part in batch.parts) <= 1000
    assert [batch.upto for batch in batches] == [0] * (len(batches) - 1) + [1]


async def test_a_dry_run_puts_nothing_and_a_finished_carry_is_not_repeated(
    path: Path,
) -> None:
    """The one is to be sure before, the other after a script was run twice."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    shelf = Shelf()

    dry = await migrate(source(path), shelf, is_dry_run=True, on_progress=quiet)
    assert (dry.source.messages, shelf.identity) == (100, None)
    await migrate(source(path), shelf, is_dry_run=False, on_progress=quiet)
    batches = shelf.batch_count
    again = await migrate(source(path), shelf, is_dry_run=False, on_progress=quiet)

    assert again.is_done
    assert shelf.batch_count == batches


async def test_a_file_that_a_bridge_holds_is_refused(
    path: Path, opened: Opened
) -> None:
    """It would go on storing in the file what the fleet never sees."""
    async with opened():
        with pytest.raises(StoreInUseError, match=str(os.getpid())):
            await migrate(source(path), Shelf(), is_dry_run=True, on_progress=quiet)


async def test_a_bridge_is_refused_while_its_file_is_carried(
    path: Path, opened: Opened
) -> None:
    """The same, the other way round."""
    async with opened():
        pass
    reading = source(path)
    reading.open()
    try:
        with pytest.raises(StoreInUseError):
            async with opened():
                pass
    finally:
        reading.close()


async def test_a_file_that_is_not_there_is_not_made(path: Path) -> None:
    """A mistyped path must not end in an empty fleet."""
    with pytest.raises(ConfigError, match="does not exist"):
        await migrate(source(path), Shelf(), is_dry_run=False, on_progress=quiet)

    assert not await asyncio.to_thread(path.exists)


async def test_a_store_that_does_not_hold_what_was_put_is_told(path: Path) -> None:
    """The last look is at what is there, not at what was sent."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    shelf = Shelf()

    class Forgetful(Shelf):
        async def counts(self, users: Sequence[str]) -> Sequence[InboxCount]:
            found = await shelf.counts(users)
            return [replace(each, messages=each.messages - 1) for each in found]

    forgetful = Forgetful(inboxes=shelf.inboxes, messages=shelf.messages)
    with pytest.raises(MigrationRefusedError, match="does not hold what was copied"):
        await migrate(source(path), forgetful, is_dry_run=False, on_progress=quiet)
    assert not forgetful.is_done
