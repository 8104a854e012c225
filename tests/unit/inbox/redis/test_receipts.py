"""Which tags a bridge polls for receipts and events."""

import asyncio
from typing import Any, cast

from bridge.core.message import Message
from bridge.core.message_options import MessageOptions, Tracking
from bridge.inbox.redis.encoding import key_prefixes, tag_of
from bridge.inbox.redis.receipts import RedisReceipts
from bridge.inbox.redis.servers import RedisServers


class PollServers:
    """Answers the script POLL: nothing is open, and nothing waits."""

    def __init__(self) -> None:
        self.prefixes = key_prefixes("bridge", 0)
        self.polled: list[str] = []
        self.was_asked = asyncio.Event()
        self.may_reply = asyncio.Event()

    async def run_script(
        self, _script: object, _tag: int, *arguments: Any
    ) -> list[Any]:
        """Answer when the test allows it."""
        self.polled = [each for each in arguments if each in self.prefixes]
        self.was_asked.set()
        await self.may_reply.wait()
        return ["1.0", *([0, 0, []] for _ in self.polled)]


async def test_a_message_that_is_stored_during_a_poll_is_in_the_next_one() -> None:
    """The poll did not see it, and its time may be short."""
    servers = PollServers()
    receipts = RedisReceipts(
        cast("RedisServers", servers),
        rules=tuple,
        real_s=lambda: 100.0,
        is_cluster=False,
        gone_s=15.0,
    )

    async def poll() -> None:
        await receipts.pending(1, max_bytes=1, unwritten_s=lambda: 0.0)

    polling = asyncio.create_task(poll())
    await servers.was_asked.wait()
    options = MessageOptions(tracking=Tracking(wants_receipt=True))
    receipts.note_appended([Message("ann", "e", b"1", 0.0, options=options)])
    servers.may_reply.set()
    await polling

    await poll()
    assert servers.polled == [servers.prefixes[tag_of("ann")]]
    await poll()
    assert servers.polled == []
