"""Sessions of the console: random ids in memory, with a limited lifetime."""

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
    The open sessions, bounded in number and in time.

    An id reveals nothing about the token, and a stolen id is worthless after the sign-out.
    The price is that a restart of the bridge ends all sessions.
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
        Start without sessions.

        Args:
            clock: Returns seconds that never decrease.
            life_s: The longest life of a session.
            idle_s: A session ends this long after its last use.
            at_most: How many sessions can be open. One more ends the session whose last
                use is oldest.

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
        """Record a use of a session; return false if the session is not open."""
        # A dict lookup takes no constant time, but 256 random bits cannot be found by
        # measuring it.
        session = self._open.pop(session_id, None)
        if session is None or self._has_ended(session):
            return False
        session.used_s = self._clock()
        self._open[session_id] = session
        return True

    def close(self, session_id: str) -> None:
        """End a session. An unknown id is ignored."""
        self._open.pop(session_id, None)

    def close_all(self) -> None:
        """End all sessions, because the token that opened them has changed."""
        self._open.clear()

    def _has_ended(self, session: _Session) -> bool:
        now_s = self._clock()
        return now_s >= session.ends_s or now_s - session.used_s >= self._idle_s

    def _drop_ended(self) -> None:
        for session_id, session in list(self._open.items()):
            if self._has_ended(session):
                del self._open[session_id]
