"""`bridge` whose store tells what it stored, in a file that several processes share."""

import os
from collections.abc import Sequence

from bridge.__main__ import main
from bridge.core.fence import Fence
from bridge.core.message import Message
from bridge.inbox.redis.store import RedisInbox

append = RedisInbox.append
# One write each to the end of the file: processes do not mix, and order is as it happened.
file = os.open(os.environ["TESTS_STORED"], os.O_WRONLY | os.O_APPEND)


async def append_and_tell(
    self: RedisInbox, messages: Sequence[Message], *, fences: Sequence[Fence] = ()
) -> list[int | None]:
    """Store as ever, and tell."""
    offsets = await append(self, messages, fences=fences)
    pid = os.getpid()
    lines = [f"{pid} {m.user} {m.data.decode()}\n" for m in messages]
    os.write(file, "".join(lines).encode())
    return offsets


RedisInbox.append = append_and_tell  # type: ignore[method-assign] # it tells

if __name__ == "__main__":
    main()
