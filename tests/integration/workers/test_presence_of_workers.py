"""Who is online with two workers behind one port: each of them has windows of the user."""

import os
import signal

from tests.conftest import eventually
from tests.integration.events import presence_worker
from tests.integration.workers.conftest import pages, program
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

# One worker gets all of them only in one of 2^15 runs.
WINDOWS = 16
END_LEASES = (
    "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end"
)


async def test_a_user_with_windows_at_both_workers_comes_and_goes_once(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """A worker that is killed changes nothing: its windows reconnect before its lease ends."""
    async with (
        presence_worker(broker, namespace) as worker,
        program(
            broker, namespace, redis_server, presence="true", presence_debounce="500ms"
        ) as running,
    ):
        # Killed during its upgrade from polling, a window would stay until its ping timeout.
        async with pages(
            running.public_url, "ann", count=WINDOWS, transports="websocket"
        ) as opened:
            assert len(opened.owners()) == 2
            await eventually(lambda: worker.changes == [("ann", "online")], within_s=30)
            os.kill(running.workers()[0], signal.SIGKILL)
            await eventually(lambda: len(opened.of("disconnect")) > 0, within_s=30)
            await eventually(
                lambda: (
                    len(opened.of("sync")) == WINDOWS + len(opened.of("disconnect"))
                ),
                within_s=30,
            )
            assert worker.changes == [("ann", "online")]
        # The windows of the killed worker leave when its lease ends.
        redis_server.command("EVAL", END_LEASES, "0", f"*{namespace}*l:*")
        await eventually(lambda: len(worker.changes) == 2, within_s=60)
        assert worker.changes == [("ann", "online"), ("ann", "offline")]
