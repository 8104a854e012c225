"""Who is signed in to the console: random ids, kept in memory alone, each for a while."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_ID_BYTES: Final = 32


@dataclass(slots=True)
class _Session:
    ends_s: float
    used_s: float


class Sessions:
    """
    The sessions that are open, bounded in number and in time.

    An id says nothing about the token: who steals one cannot guess at the token with it,
    and signing out ends it for good. The price is that a restart ends them all.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        life_s: float = 12 * 3600,
        idle_s: float = 3600,
        at_most: int = 100,
    ) -> None:
        """
        Start with none.

        Args:
            clock: Seconds, on any scale that only grows.
            life_s: A session ends that long after it was opened, used or not.
            idle_s: It ends that long after it was last used.
            at_most: When one more is opened, the one not used for longest ends.

        """
        self.life_s = life_s
        self._clock = clock
        self._idle_s = idle_s
        self._at_most = at_most
        self._open: dict[str, _Session] = {}  # in the order of last use

    def open(self) -> str:
        """Open a session and return its id."""
        self._drop_ended()
        if len(self._open) >= self._at_most:
            del self._open[next(iter(self._open))]
        session_id = secrets.token_urlsafe(_ID_BYTES)
        now_s = self._clock()
        self._open[session_id] = _Session(now_s + self.life_s, now_s)
        return session_id

    def use(self, session_id: str) -> bool:
        """Note that a session is used; false if it is not open (any more)."""
        # Looked up by its hash: 256 random bits cannot be found by timing that.
        session = self._open.pop(session_id, None)
        if session is None or self._has_ended(session):
            return False
        session.used_s = self._clock()
        self._open[session_id] = session
        return True

    def close(self, session_id: str) -> None:
        """End a session; nothing if there is none."""
        self._open.pop(session_id, None)

    def close_all(self) -> None:
        """End all of them: the token that opened them is no longer the token."""
        self._open.clear()

    def _has_ended(self, session: _Session) -> bool:
        now_s = self._clock()
        return now_s >= session.ends_s or now_s - session.used_s >= self._idle_s

    def _drop_ended(self) -> None:
        for session_id, session in list(self._open.items()):
            if self._has_ended(session):
                del self._open[session_id]
