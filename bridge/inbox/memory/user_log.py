"""The messages and counters of one user in memory."""

from collections import deque
from dataclasses import dataclass, field

from bridge.core.clock_reading import ClockReading
from bridge.core.message import Stored
from bridge.enums import SyncReason
from bridge.inbox.contract import Retention


@dataclass(slots=True)
class UserLog:
    """
    One user's inbox.

    Attributes:
        kept: The kept messages, oldest first; their offsets are consecutive.
        last: The newest offset ever given; 0 if there was none.
        delivered: The delivered mark.
        trimmed_for: Why the newest deleted message was deleted.
        forgotten: See `InboxState`; also the initial `last` and `delivered`.
        appended_s: Unix time at which the newest message was stored.

    """

    kept: deque[Stored] = field(default_factory=deque)
    last: int = 0
    delivered: int = 0
    trimmed_for: SyncReason | None = None
    forgotten: int = 0
    appended_s: float = 0.0

    @property
    def first(self) -> int:
        """Offset of the oldest kept message; `last` + 1 if none is kept."""
        return self.last - len(self.kept) + 1

    def trim(self, retention: Retention, now: ClockReading) -> None:
        """Delete messages that are over the limit or too old."""
        kept = self.kept
        while len(kept) > retention.max_messages:
            kept.popleft()
            self.trimmed_for = SyncReason.LIMIT
        oldest_s = now.ago(retention.max_age_s)
        while kept and kept[0].message.taken_s < oldest_s:
            kept.popleft()
            self.trimmed_for = SyncReason.EXPIRED
