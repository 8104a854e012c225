"""A process that is killed in the middle of commits has lost nothing that was promised."""

import asyncio
import random
import sys
from pathlib import Path

from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox

_LIVES = 6
_USERS = 20

# Appends for ever, and tells what was stored only when `append` has returned.
_PROGRAM = """
import asyncio, random, sys
from time import time
from bridge.core.message import Message
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox

async def main(path, life, users):
    retention = Retention(max_messages=1_000_000, max_age_s=1e6, dedupe_s=600)
    inbox = SqliteInbox(path, retention, round_entries=200)
    await inbox.open()
    print("epoch", inbox.epoch, flush=True)
    chance = random.Random(life)
    number = 0

    async def append():
        nonlocal number
        batch = []
        for _ in range(chance.randrange(1, 40)):
            number += 1
            name = f"{life}-{number}"
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


async def live_and_die(path: Path, life: int, lines: int) -> list[str]:
    """Run the program until it has told `lines` lines, kill it, and return all of them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, str(path), str(life), str(_USERS),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    told: list[str] = []
    try:
        async with asyncio.timeout(30):
            while len(told) < lines:
                line = await process.stdout.readline()
                assert line, "it died by itself"
                told.append(line.decode().strip())
    finally:
        process.kill()
        rest = await process.stdout.read()
        await process.wait()
    # The last line may be half a line: what was not told was not promised.
    whole = rest.decode().rpartition("\n")[0]
    return told + [line for line in whole.split("\n") if line]


async def test_what_was_told_to_be_stored_is_there_after_kill_9(tmp_path: Path) -> None:
    """Every message, at its offset, in order, without holes, in the same epoch."""
    path = tmp_path / "inbox.sqlite3"
    chance = random.Random(7)  # noqa: S311 - no secret
    epochs: set[str] = set()
    stored: dict[str, dict[int, str]] = {}
    for life in range(_LIVES):
        told = await live_and_die(path, life, chance.randrange(200, 3000))
        epochs.add(told[0])
        for line in told[1:]:
            user, offset, name = line.split()
            assert int(offset) not in stored.setdefault(user, {}), line
            stored[user][int(offset)] = name

    retention = Retention(max_messages=1_000_000, max_age_s=1e6, dedupe_s=600)
    inbox = SqliteInbox(str(path), retention)
    await inbox.open()
    assert epochs == {f"epoch {inbox.epoch}"}
    assert len(stored) == _USERS
    for user, told_by_offset in stored.items():
        page = await inbox.read(
            user, after=0, max_messages=1_000_000, max_bytes=1 << 30
        )
        found = {each.offset: each.message for each in page.messages}
        assert page.gone == 0
        assert list(found) == list(range(1, page.last + 1))
        for at, promised in told_by_offset.items():
            assert found[at].id == promised
        # What was stored and not told is there once, whole.
        names = [each.id for each in found.values()]
        assert len(set(names)) == len(names)
        again = [found[page.last]]
        assert await inbox.append(again) == [None]
    await inbox.check()
    await inbox.close()
