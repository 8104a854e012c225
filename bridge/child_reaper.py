"""
Reap the children that this process adopted.

As PID 1 of a container, bridge becomes the parent of every process whose own parent ended, for
example in a `docker exec` or in a health check. Such processes stay as zombies until their
parent waits for them, and enough zombies use up the process ids of the container.
"""

import asyncio
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

_INTERVAL_S: Final = 5.0


async def reap_adopted_children(
    own: Callable[[], Collection[int] | None] = tuple,
    *,
    interval_s: float = _INTERVAL_S,
) -> None:
    """
    Reap adopted children periodically until canceled.

    Args:
        own: Returns the ids of the processes that this process started and waits for, or
            ``None`` while it starts one whose id it does not know yet.
        interval_s: The time between two attempts.

    """
    while True:
        await asyncio.sleep(interval_s)
        known = own()
        if known is not None:
            _reap(known)


def _reap(own: Collection[int]) -> None:
    options = os.WEXITED | os.WNOHANG
    with suppress(ChildProcessError):  # there is no child at all
        # First look, then wait: the exit status of an own process belongs to its starter.
        while (ended := os.waitid(os.P_ALL, 0, options | os.WNOWAIT)) is not None:
            if ended.si_pid in own:
                return  # it is waited for in a moment; the others follow in the next attempt
            os.waitid(os.P_PID, ended.si_pid, options)
