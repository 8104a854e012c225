"""Admin queries on Redis run in small parts, because a server runs one at a time."""

import asyncio
import secrets
import time

import pytest

from bridge.core.message import Message
from bridge.core.receipts import WorkerEvent
from bridge.core.redis_address import parse_redis
from bridge.inbox.contract import Retention
from bridge.inbox.redis.encoding import tag_of
from bridge.inbox.redis.store import RedisInbox
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=1000, max_age_s=1e6, dedupe_s=600)
_USERS = 12


async def test_one_script_of_a_search_reads_a_few_thousand_messages_at_most(
    redis_server: RedisServer,
) -> None:
    """The search takes fewer users at once if they have many messages, and skips none."""
    namespace = f"t{secrets.token_hex(4)}"
    inbox = RedisInbox(parse_redis(redis_server.url), RETENTION, namespace=namespace)
    numbers = (f"user-{number}" for number in range(100_000))
    of_one_tag = (user for user in numbers if tag_of(user) == 7)
    users = sorted(next(of_one_tag) for _ in range(_USERS))
    await inbox.open()
    try:
        for user in users:
            now_s = time.time()
            batch = [Message(user, "m", b"1", now_s) for _ in range(999)]
            await inbox.append([*batch, Message(user, "m", b"1", now_s, "wanted")])
        before = scripts_run(redis_server)
        search = await inbox.admin.find("wanted")
        run = scripts_run(redis_server) - before
    finally:
        await inbox.close()

    assert [match.user for match in search.matches] == users
    assert (search.scanned, search.is_complete) == (_USERS * 1000, True)
    assert run == _USERS // 4


async def test_a_search_for_waiting_events_is_bounded_in_bytes(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data of undelivered messages stay on the server, which is busy only for moments."""
    namespace = f"t{secrets.token_hex(4)}"
    inbox = RedisInbox(parse_redis(redis_server.url), RETENTION, namespace=namespace)
    await inbox.open()
    try:
        for number in range(60):
            name = "wanted" if number in (0, 50) else f"m{number}"
            fields = (f"{number}", "message.undelivered", "ann", b"x" * 200_000, number)
            await inbox.add_event(WorkerEvent(*fields, message_id=name))
        before = scripts_run(redis_server), bytes_sent(redis_server)
        events = await inbox.admin.waiting_events("ann", "wanted")
        run = scripts_run(redis_server) - before[0]
        sent_bytes = bytes_sent(redis_server) - before[1]
        monkeypatch.setattr(inbox.admin, "_search_within_s", 0.0)
        part = await inbox.admin.waiting_events("ann", "wanted")
    finally:
        await inbox.close()

    assert ([each.at_s for each in events.found], events.is_complete) == ([0, 50], True)
    assert ([each.at_s for each in part.found], part.is_complete) == ([0], False)
    assert run == 60 // 16 + 1
    assert sent_bytes < 200_000


async def test_a_search_through_small_waiting_events_takes_short_steps(
    redis_server: RedisServer,
) -> None:
    """The server runs nothing else meanwhile: a thousand events take some milliseconds."""
    namespace = f"t{secrets.token_hex(4)}"
    inbox = RedisInbox(parse_redis(redis_server.url), RETENTION, namespace=namespace)
    await inbox.open()
    try:
        events = [
            WorkerEvent(f"{number}", "message.dead", "ann", b"{}", 1.0, message_id="m")
            for number in range(1100)
        ]
        await asyncio.gather(*map(inbox.add_event, events))
        before = scripts_run(redis_server)
        found = await inbox.admin.waiting_events("ann", "m")
        run = scripts_run(redis_server) - before
    finally:
        await inbox.close()

    assert (len(found.found), found.is_complete, run) == (1100, True, 2)


def scripts_run(server: RedisServer) -> int:
    """Return how many scripts the server has run."""
    for line in server.command("INFO", "commandstats").splitlines():
        if line.startswith("cmdstat_evalsha:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


def bytes_sent(server: RedisServer) -> int:
    """Return how many bytes the server has sent."""
    stats = server.command("INFO", "stats")
    return int(stats.partition("total_net_output_bytes:")[2].split()[0])
