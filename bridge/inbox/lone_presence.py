"""Which users workers believe to be online, for a store that one bridge alone uses."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Final

from bridge.core.receipts import WorkerEvent
from bridge.inbox.worker_events import presence_event

# Users who are reported offline at once. After a restart all of them may be due together.
_OFFLINE_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class PresenceDecision:
    """
    What `LonePresence` has decided.

    Attributes:
        seq: The `seq` of all its events.
        online: Users who came online.
        offline: Users who went offline.
        events: What is published for workers.

    """

    seq: int
    online: Collection[str]
    offline: Collection[str]
    events: Sequence[WorkerEvent]


class LonePresence:
    """
    The users that were reported online, and since when they have no windows.

    Args:
        online: Users that an earlier process has reported online. They count as gone since
            now.
        last_seq: The last `seq` that was used.
        real_s: Real time, as all arguments of this name.

    """

    def __init__(
        self, online: Iterable[str] = (), *, last_seq: int = 0, real_s: float = 0.0
    ) -> None:
        self._online = set(online)
        self._left_s = dict.fromkeys(self._online, real_s)  # the earliest first
        self._last_seq = last_seq

    def decide(
        self,
        windows: Mapping[str, int],
        *,
        debounce_s: float,
        real_s: float,
        now_s: float,
    ) -> PresenceDecision:
        """
        Decide who came online and who went offline; see `PresenceStore.note_presence`.

        The caller stores the decision and then calls `apply`. If that fails it passes the
        windows again.
        """
        online: dict[str, int] = {}
        left_s = self._left_s
        for user, count in windows.items():
            if user not in self._online:
                if count:
                    online[user] = count
            elif count:
                left_s.pop(user, None)
            else:
                left_s.setdefault(user, real_s)
        due = takewhile(lambda user: left_s[user] + debounce_s <= real_s, left_s)
        offline = dict.fromkeys(islice(due, _OFFLINE_MAX), 0)
        # Not only a count: it must be larger than before although memory or the file was lost.
        seq = max(self._last_seq + 1, int(now_s * 1000))
        events = [
            presence_event(user, windows=count, at_s=now_s, seq=seq)
            for user, count in (online | offline).items()
        ]
        return PresenceDecision(seq, online, offline, events)

    def apply(self, decision: PresenceDecision) -> None:
        """Note that a decision was stored."""
        if decision.events:
            self._last_seq = decision.seq
        self._online.update(decision.online)
        for user in decision.offline:
            self._online.remove(user)
            del self._left_s[user]
