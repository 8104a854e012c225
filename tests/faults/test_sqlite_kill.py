"""A process that is killed during commits loses no message whose append had returned."""

import asyncio
import random
import sys
from pathlib import Path

from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox

_RUNS = 6
_USERS = 20

# Appends until it is killed, and prints what was stored after `append` has returned.
_PROGRAM = """
import asyncio, random, sys
from time import time
from bridge.core.message import Message
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox

async def main(path, run, users):
    retention = Retention(max_messages=1_000_000, max_age_s=1e6, dedupe_s=600)
    inbox = SqliteInbox(path, retention, round_entries=200)
    await inbox.open()
    print("epoch", inbox.epoch, flush=True)
    chance = random.Random(run)
    number = 0

    async def append():
        nonlocal number
        batch = []
        for _ in range(chance.randrange(1, 40)):
            number += 1
            name = f"{run}-{number}"
            user = f"user-{chance.randrange(users)}"
            batch.append(Message(user, "message", b'"' + name.encode() + b'"', time(), name))
        offsets = await inbox.append(batch)
        lines = [f"{m.user} {o} {m.id}" for m, o in zip(batch, offsets)]
        print("\\n".join(lines), flush=True)

    async def appends():
        while True:
            await append()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(appends())

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


async def run_and_kill(path: Path, run: int, line_count: int) -> list[str]:
    """Run the program until it has printed `line_count` lines, kill it, and return them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, str(path), str(run), str(_USERS),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    printed: list[str] = []
    try:
        async with asyncio.timeout(30):
            while len(printed) < line_count:
                line = await process.stdout.readline()
                assert line, "the program ended on its own"
                printed.append(line.decode().strip())
    finally:
        process.kill()
        rest = await process.stdout.read()
        await process.wait()
    # The last line may be incomplete: its message was not reported as stored.
    whole = rest.decode().rpartition("\n")[0]
    return printed + [line for line in whole.split("\n") if line]


async def test_messages_reported_as_stored_survive_kill_9(tmp_path: Path) -> None:
    """Each at its offset, in order, without gaps, in the same epoch."""
    path = tmp_path / "inbox.sqlite3"
    chance = random.Random(7)  # noqa: S311 - no secret
    epochs: set[str] = set()
    stored: dict[str, dict[int, str]] = {}
    for run in range(_RUNS):
        printed = await run_and_kill(path, run, chance.randrange(200, 3000))
        epochs.add(printed[0])
        for line in printed[1:]:
            user, offset, name = line.split()
            assert int(offset) not in stored.setdefault(user, {}), line
            stored[user][int(offset)] = name

    retention = Retention(max_messages=1_000_000, max_age_s=1e6, dedupe_s=600)
    inbox = SqliteInbox(str(path), retention)
    await inbox.open()
    assert epochs == {f"epoch {inbox.epoch}"}
    assert len(stored) == _USERS
    for user, names_by_offset in stored.items():
        page = await inbox.read(
            user, after=0, max_messages=1_000_000, max_bytes=1 << 30
        )
        found = {each.offset: each.message for each in page.messages}
        assert page.gone == 0
        assert list(found) == list(range(1, page.last + 1))
        for offset_, name in names_by_offset.items():
            assert found[offset_].id == name
        # Messages that were stored but not reported are present once.
        names = [each.id for each in found.values()]
        assert len(set(names)) == len(names)
        again = [found[page.last]]
        assert await inbox.append(again) == [None]
    await inbox.check()
    await inbox.close()
