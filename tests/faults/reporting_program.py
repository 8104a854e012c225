"""`bridge` whose store records each stored message in a file shared by several processes."""

import os
from collections.abc import Sequence

from bridge.__main__ import main
from bridge.core.fencing_token import FencingToken
from bridge.core.message import Message
from bridge.inbox.redis.store import RedisInbox

append = RedisInbox.append
# One O_APPEND write per batch: lines of several processes do not mix, and stay in order.
file = os.open(os.environ["TESTS_STORED"], os.O_WRONLY | os.O_APPEND)


async def append_and_record(
    self: RedisInbox,
    messages: Sequence[Message],
    *,
    tokens: Sequence[FencingToken] = (),
) -> list[int | None]:
    """Store the messages and record them."""
    offsets = await append(self, messages, tokens=tokens)
    pid = os.getpid()
    lines = [f"{pid} {m.user} {m.data.decode()}\n" for m in messages]
    os.write(file, "".join(lines).encode())
    return offsets


RedisInbox.append = append_and_record  # type: ignore[method-assign] # records messages

if __name__ == "__main__":
    main()
