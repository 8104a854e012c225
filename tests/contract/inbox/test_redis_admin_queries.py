"""Admin queries on Redis run in small parts, because a server runs one at a time."""

import secrets
import time

from bridge.core.message import Message
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


def scripts_run(server: RedisServer) -> int:
    """Return how many scripts the server has run."""
    for line in server.command("INFO", "commandstats").splitlines():
        if line.startswith("cmdstat_evalsha:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0
