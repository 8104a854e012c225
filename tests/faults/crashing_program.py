"""`bridge` with a fault put in: storing a message that holds `deadly` ends the process."""

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
    """Die as by a fault in some library below: at once, without a word."""
    if any(b"deadly" in message.data for message in messages):
        os.kill(os.getpid(), signal.SIGKILL)
    return await append(self, messages)


SqliteInbox.append = append_or_die  # type: ignore[method-assign] # the fault

if __name__ == "__main__":
    main()
