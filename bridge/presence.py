"""
Tells the store which users have windows on this bridge; the store decides who is online.

Changes are collected and written together, and windows never wait for them. Of each user only
the present number of windows counts, so a user whose windows come and go costs one entry.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from itertools import islice
from typing import Final

from bridge.inbox.contract import PresenceStore

# How long changes are collected.
_COLLECT_S: Final = 0.1
# Users in one write. After an outage of the store, all who have windows are noted.
_USERS_MAX: Final = 10_000
# Users who stay away become offline only when the store is called.
_INTERVAL_S: Final = 1.0


class PresenceReporter:
    """
    Notes in the store who has windows here.

    Args:
        store: Decides who is online.
        windows_of: Returns the number of windows of a user.
        users: Returns all users who have windows.
        debounce_s: How long a user without windows stays online.

    """

    def __init__(
        self,
        store: PresenceStore,
        *,
        windows_of: Callable[[str], int],
        users: Callable[[], Collection[str]],
        debounce_s: float,
    ) -> None:
        self._store = store
        self._windows_of = windows_of
        self._users = users
        self._debounce_s = debounce_s
        self._changed: set[str] = set()
        self._has_changed = asyncio.Event()

    def note(self, user: str) -> None:
        """Note that the first window of `user` has opened here, or the last one closed."""
        self._changed.add(user)
        self._has_changed.set()

    async def run(self) -> None:
        """
        Write changes until canceled; the store must be open.

        Cancellation:
            Safe. The store finds out that this bridge has no windows any more.

        """
        while True:
            if not await self._write():
                await asyncio.sleep(_INTERVAL_S)  # the store may be away
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._has_changed.wait()
                    await asyncio.sleep(_COLLECT_S)

    async def _write(self) -> bool:
        """Write the changes; return whether the store knows all windows now."""
        self._has_changed.clear()
        changed = set(islice(self._changed, _USERS_MAX))
        self._changed -= changed
        if self._changed:
            self._has_changed.set()
        windows = {user: self._windows_of(user) for user in changed}
        is_lost = await self._store.note_presence(windows, debounce_s=self._debounce_s)
        if is_lost is not None:
            self._changed.update(filter(is_lost, self._users()))
        return is_lost is None
