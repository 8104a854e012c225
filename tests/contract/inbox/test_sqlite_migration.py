"""Migration from a SQLite file: what the source yields, and resuming."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bridge.core.message import Message, Stored
from bridge.core.receipts import Receipt, WorkerEvent
from bridge.core.revocation import Revocation
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
from tests.contract.inbox.files import Clock, OpenInbox
from tests.inbox_files import Filling, fill

RETENTION = Retention(max_messages=1000, max_age_s=1e6, dedupe_s=600)


class BrokenError(Exception):
    """Stands for a crash in the middle of a migration."""


@dataclass
class MemoryTarget:
    """A target in memory, which can fail after a number of batches."""

    description: str = "memory:"
    inboxes: dict[str, InboxNumbers] = field(default_factory=dict)
    messages: dict[str, dict[int, Stored]] = field(default_factory=dict)
    ids: dict[str, dict[str, float]] = field(default_factory=dict)
    identity: SourceIdentity | None = None
    upto: int = 0
    revocations: set[Revocation] = field(default_factory=set)
    receipts: list[Receipt] = field(default_factory=list)
    events: list[WorkerEvent] = field(default_factory=list)
    is_done: bool = False
    batch_count: int = 0
    fails_after: int | None = None

    async def open(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def progress(self, identity: SourceIdentity) -> int | None:
        """Return the recorded progress."""
        if self.identity not in {None, identity}:
            raise MigrationRefusedError(self.description, "it holds another migration")
        return None if self.is_done else self.upto

    async def begin(self, identity: SourceIdentity) -> None:
        """Record the source."""
        self.identity = identity

    async def write(self, batch: MigrationBatch) -> None:
        """Store the batch; record the progress unless it is the batch that fails."""
        self.batch_count += 1
        for part in batch.parts:
            user = part.inbox.user
            self.inboxes[user] = part.inbox
            kept = self.messages.setdefault(user, {})
            for stored in part.messages:
                assert kept.get(stored.offset, stored) == stored
                kept[stored.offset] = stored
            self.ids.setdefault(user, {}).update(part.ids)
        if self.batch_count == self.fails_after:
            raise BrokenError
        self.upto = batch.upto

    async def counts(self, users: Sequence[str]) -> Sequence[InboxCount]:
        """Return what was stored."""
        return [
            InboxCount(self.inboxes[user], len(self.messages[user])) for user in users
        ]

    async def write_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Keep the receipts."""
        self.receipts += receipts

    async def write_events(self, events: Sequence[WorkerEvent]) -> None:
        """Keep the events."""
        self.events += events

    async def write_revocations(self, revocations: Sequence[Revocation]) -> None:
        """Store the revocations."""
        self.revocations.update(revocations)

    async def finish(self, identity: SourceIdentity) -> None:
        """Record that the migration is done."""
        assert identity == self.identity
        self.is_done = True


def quiet(activity: str, done: MigrationTotals, totals: MigrationTotals) -> None:
    """Print nothing."""


def source(path: Path, now: Callable[[], float] | None = None) -> SqliteSource:
    options = {} if now is None else {"now": now}
    return SqliteSource(str(path), dedupe_s=600, **options)


async def test_everything_in_the_file_is_copied_as_a_bridge_would_read_it(
    path: Path,
) -> None:
    """Offsets, data, ids, deadlines and marks: clients must not notice the new store."""
    await fill(str(path), Filling(messages=5000, users=40), RETENTION)
    target = MemoryTarget()

    result = await migrate(source(path), target, is_dry_run=False, on_progress=quiet)

    assert result.is_done
    assert result.source == MigrationTotals(users=40, messages=5000, ids=1250)
    assert replace(result.copied, bytes=0) == result.source
    inbox = SqliteInbox(str(path), RETENTION)
    await inbox.open()
    try:
        assert result.epoch == inbox.epoch
        for user, copy in target.inboxes.items():
            state = await inbox.state(user)
            assert (copy.first, copy.last) == (state.first, state.last)
            assert copy.delivered == state.delivered > 0
            page = await inbox.read(
                user, after=0, max_messages=10_000, max_bytes=1 << 30
            )
            assert list(target.messages[user].values()) == page.messages
    finally:
        await inbox.close()


async def test_the_reason_of_deletions_is_copied(
    path: Path, open_inbox: OpenInbox, clock: Clock
) -> None:
    """A reconnecting client must learn from the new store as well what it has missed."""
    async with open_inbox() as inbox:
        for user, count in (("limit", 300), ("age", 30), ("none", 5)):
            messages = [Message(user, "m", b"%d" % n, clock()) for n in range(count)]
            await inbox.append(messages)
        clock.now_s += 900
        for user in ("limit", "age"):
            await inbox.append([Message(user, "m", b"young", clock())])
        await inbox.sweep()  # indexes all entries
        clock.now_s += 200
        await inbox.follow("none")
        await inbox.sweep()  # deletes messages that are too old
    target = MemoryTarget()

    await migrate(source(path, clock), target, is_dry_run=False, on_progress=quiet)

    for user, offset in (("limit", 301), ("age", 31)):
        copied = target.inboxes[user]
        assert (copied.first, copied.last) == (offset, offset)
        assert copied.trimmed_for is SyncReason.EXPIRED
        assert list(target.messages[user]) == [offset]
    assert (target.inboxes["none"].first, target.inboxes["none"].last) == (6, 5)
    assert target.messages["none"] == {}


async def test_trimmed_messages_are_not_copied(
    path: Path, open_inbox: OpenInbox, clock: Clock
) -> None:
    """No client could read them any more."""
    async with open_inbox(round_entries=3) as inbox:
        for start in range(0, 500, 50):
            numbers = range(start, start + 50)
            await inbox.append(
                [Message("ann", "m", b"%d" % n, clock()) for n in numbers]
            )
    target = MemoryTarget()

    await migrate(source(path, clock), target, is_dry_run=False, on_progress=quiet)

    ann = target.inboxes["ann"]
    assert 100 <= ann.last - ann.first + 1 == len(target.messages["ann"]) <= 150
    assert ann.trimmed_for is SyncReason.LIMIT


async def test_only_ids_within_the_dedupe_window_are_copied(
    path: Path, open_inbox: OpenInbox, clock: Clock
) -> None:
    """Older ids are no longer duplicates for any store."""
    async with open_inbox() as inbox:
        await inbox.append([Message("ann", "m", b"1", clock(), "old")])
        clock.now_s += 700
        await inbox.append([Message("ann", "m", b"2", clock(), "new")])
    target = MemoryTarget()

    await migrate(source(path, clock), target, is_dry_run=False, on_progress=quiet)

    assert target.ids["ann"] == {"new": clock()}


@pytest.mark.parametrize("fails_after", [1, 2, 4])
async def test_an_interrupted_migration_is_resumed_with_the_same_result(
    path: Path, fails_after: int
) -> None:
    """It repeats at most one batch, and repeating changes nothing."""
    await fill(str(path), Filling(messages=5000, users=40), RETENTION)
    uninterrupted, interrupted = MemoryTarget(), MemoryTarget(fails_after=fails_after)
    await migrate(source(path), uninterrupted, is_dry_run=False, on_progress=quiet)

    with pytest.raises(BrokenError):
        await migrate(source(path), interrupted, is_dry_run=False, on_progress=quiet)
    result = await migrate(
        source(path), interrupted, is_dry_run=False, on_progress=quiet
    )

    assert result.is_done
    assert interrupted.batch_count <= uninterrupted.batch_count + 2
    assert interrupted.messages == uninterrupted.messages
    assert interrupted.inboxes == uninterrupted.inboxes
    assert interrupted.ids == uninterrupted.ids


async def test_a_large_inbox_is_copied_in_batches_of_bounded_size(path: Path) -> None:
    """The size of the largest inbox does not affect the memory needed."""
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


async def test_a_dry_run_writes_nothing_and_a_finished_migration_is_not_repeated(
    path: Path,
) -> None:
    """A script may run the command twice."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    target = MemoryTarget()

    dry = await migrate(source(path), target, is_dry_run=True, on_progress=quiet)
    assert (dry.source.messages, target.identity) == (100, None)
    await migrate(source(path), target, is_dry_run=False, on_progress=quiet)
    batches = target.batch_count
    again = await migrate(source(path), target, is_dry_run=False, on_progress=quiet)

    assert again.is_done
    assert target.batch_count == batches


async def test_a_file_that_a_bridge_has_open_is_refused(
    path: Path, open_inbox: OpenInbox
) -> None:
    """The bridge would store messages in the file that the fleet never receives."""
    async with open_inbox():
        with pytest.raises(StoreInUseError, match=str(os.getpid())):
            await migrate(
                source(path), MemoryTarget(), is_dry_run=True, on_progress=quiet
            )


async def test_a_bridge_cannot_open_a_file_during_its_migration(
    path: Path, open_inbox: OpenInbox
) -> None:
    """Messages stored meanwhile would be missing in the target."""
    async with open_inbox():
        pass
    reading = source(path)
    reading.open()
    try:
        with pytest.raises(StoreInUseError):
            async with open_inbox():
                pass
    finally:
        reading.close()


async def test_a_missing_file_is_not_created(path: Path) -> None:
    """A mistyped path must not result in an empty store."""
    with pytest.raises(ConfigError, match="does not exist"):
        await migrate(source(path), MemoryTarget(), is_dry_run=False, on_progress=quiet)

    assert not await asyncio.to_thread(path.exists)


async def test_a_target_that_lost_data_fails_the_comparison(path: Path) -> None:
    """The comparison reads the target instead of trusting the writes."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    target = MemoryTarget()

    class LosingTarget(MemoryTarget):
        async def counts(self, users: Sequence[str]) -> Sequence[InboxCount]:
            found = await target.counts(users)
            return [replace(each, messages=each.messages - 1) for each in found]

    losing = LosingTarget(inboxes=target.inboxes, messages=target.messages)
    with pytest.raises(MigrationRefusedError, match="differs from what was copied"):
        await migrate(source(path), losing, is_dry_run=False, on_progress=quiet)
    assert not losing.is_done
