"""`bridge` with a defect: storing a message that contains `deadly` kills the process."""

import os
import signal
from collections.abc import Sequence

from bridge.__main__ import main
from bridge.core.message import Message
from bridge.inbox.sqlite.store import SqliteInbox

append = SqliteInbox.append


async def append_or_die(
    self: SqliteInbox, messages: Sequence[Message]
) -> list[int | None]:
    """Kill the process at once, like a crash in a C library."""
    if any(b"deadly" in message.data for message in messages):
        os.kill(os.getpid(), signal.SIGKILL)
    return await append(self, messages)


SqliteInbox.append = append_or_die  # type: ignore[method-assign] # the defect

if __name__ == "__main__":
    main()
