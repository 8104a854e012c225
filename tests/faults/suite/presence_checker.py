"""
The part of the checker that judges what workers learn about presence. Pure.

A bridge and its pages do not notice the end of a connection at the same time, and a bridge notes
its windows in the store a little later. So `user.offline` counts as false only if the user had a
window beyond these delays, which are much longer while some faults last.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

from tests.faults.suite.history import (
    Closed,
    Connected,
    Disconnected,
    Event,
    FaultEnded,
    FaultStarted,
    Opened,
    PresenceCounted,
    PresenceReported,
)

DEBOUNCE_S: Final = 3.0  # BRIDGE_PRESENCE_DEBOUNCE of all bridges
LEASE_S: Final = 20.0  # within it the users of a bridge that has ended leave

# Parts of the names of faults in which pages notice the end of a connection late.
_SLOW_PAGES: Final = ("frozen", "slow", "halved", "stop reading", "open connection")
# Those in which a bridge notes windows late, or calls the store with an old time.
_SLOW_BRIDGE: Final = ("Redis", "bridge: frozen")
_RABBITMQ: Final = "RabbitMQ:"  # its faults and networks concern neither
# How long such a fault has an effect after its end: a debounce, and the reconnect to Redis.
_EFFECT_S: Final = DEBOUNCE_S + 2.0
# A call to the store is underway for so long if no fault lasts.
_CALL_S: Final = 0.5

# A page notices that the bridge has closed it after the interval and the timeout of pings, 7 s.
# A bridge closes pages of a busy machine in this way without any fault.
_NOTICED_S: Final = 8.5
# Only a page that leaves by itself, on a WebSocket, is known to the bridge until then.
LEFT: Final = "io client disconnect"
_POLLING: Final = ("poll", "polling")

# Without these faults: bridges note windows within a second, and the suite records within
# 2.5 s that a page has left; then a user who had one 0.5 s before was not away for 3 s.
NOTED_S: Final = 1.0
_AWAY_S: Final = 0.5
# With them, a bridge may be unable to note a window for 9 s and a reconnect, and a call may
# take 10 s.
_NOTED_IN_FAULTS_S: Final = 15.0
_STILL_OPEN_S: Final = 12.0
# If a bridge stood still or lacked Redis for so long, by several faults or a long one, its
# leases may have ended.
_LEASES_END_S: Final = 10.0


class PresenceViolation:
    """The kinds of violations."""

    SEQ = "events about presence with a wrong seq"
    TWICE = "users reported online twice, or offline twice"
    FALSE_OFFLINE = "users with a window reported offline"
    END = "users with a wrong presence at the end"

    ALL = (SEQ, TWICE, FALSE_OFFLINE, END)


@dataclass(slots=True)
class _Presence:
    """
    The presence of one user.

    Attributes:
        open: When each open window was connected.
        closed: When each earlier connection began, and until when the bridge surely had it.
        events: What a worker received, repeats included.

    """

    open: dict[str, float] = field(default_factory=dict)
    closed: list[tuple[float, float]] = field(default_factory=list)
    events: list[PresenceReported] = field(default_factory=list)


@dataclass(slots=True)
class _Fault:
    kind: str
    began_t: float
    ended_t: float | None = None


class PresenceChecker:
    """Consumes events in the order of their times; can be queried at any time."""

    def __init__(self) -> None:
        self._users: defaultdict[str, _Presence] = defaultdict(_Presence)
        self._user_of: dict[str, str] = {}
        self._faults: list[_Fault] = []
        # Of each bridge: the windows of each user by its last count, and in fact.
        self._counted: dict[str, dict[str, tuple[int, int]]] = {}
        self._t = 0.0

    def feed(self, event: Event) -> None:
        """Process one event; most kinds do not matter here."""
        self._t = event.t
        match event:
            case Opened():
                self._user_of[event.window] = event.user
                self._close(event.window)
            case Connected():
                self._close(event.window)
                self._users[self._user_of[event.window]].open[event.window] = event.t
            case Disconnected():
                has_left = event.reason == LEFT and not event.window.endswith(_POLLING)
                self._close(event.window, noticed_s=0.0 if has_left else _NOTICED_S)
            case Closed():
                self._close(event.window)
            case FaultStarted():
                self._faults.append(_Fault(event.kind, event.t))
            case FaultEnded():
                self._end_fault(event)
            case PresenceReported():
                self._users[event.user].events.append(event)
            case PresenceCounted():
                self._counted[event.bridge] = {
                    user: (windows, len(self._users[user].open))
                    for user, windows in event.windows.items()
                }

    def has_windows(self, user: str) -> bool:
        """Whether a window of `user` is connected."""
        return bool(self._users[user].open)

    def wrong(self) -> Iterator[str]:
        """Yield the users about whom a bridge or the last event is wrong, as of the last counts."""
        for bridge, counts in self._counted.items():
            for user, (counted, windows) in counts.items():
                events = self._users[user].events
                last = max(events, key=lambda event: event.seq, default=None)
                is_online = last is not None and last.windows > 0
                if counted != windows or is_online != (windows > 0):
                    yield (
                        f"{user} has {windows} windows, {counted} by {bridge}; "
                        f"last event: {last}"
                    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield kind and description of all violations so far."""
        for user in self._users.values():
            events: dict[int, PresenceReported] = {}
            for event in user.events:
                if not _is_due(event, events):
                    yield PresenceViolation.SEQ, str(event)
                events.setdefault(event.seq, event)
            is_online = False
            for _, event in sorted(events.items()):
                if (event.windows > 0) is is_online:
                    yield PresenceViolation.TWICE, str(event)
                is_online = event.windows > 0
                if not is_online and self._had_window(user, event.decided_t):
                    yield PresenceViolation.FALSE_OFFLINE, str(event)
        for text in self.wrong():
            yield PresenceViolation.END, text

    def _close(self, window: str, *, noticed_s: float = _NOTICED_S) -> None:
        user = self._users[self._user_of[window]]
        connected_t = user.open.pop(window, None)
        if connected_t is not None:
            user.closed.append((connected_t, self._t - noticed_s))

    def _end_fault(self, event: FaultEnded) -> None:
        for fault in self._faults:
            if fault.kind == event.kind and fault.ended_t is None:
                fault.ended_t = event.t

    def _had_window(self, user: _Presence, t: float) -> bool:
        """Return whether `user` cannot have been without a window for the debounce at `t`."""
        connected_t, open_t = t - NOTED_S, t - _AWAY_S
        if self._fault_s((*_SLOW_PAGES, *_SLOW_BRIDGE), t - _EFFECT_S, t + _CALL_S):
            if self._fault_s(_SLOW_BRIDGE, t - LEASE_S, t) >= _LEASES_END_S:
                return False
            connected_t, open_t = t - _NOTED_IN_FAULTS_S, t + _STILL_OPEN_S
        still_open = ((since_t, self._t - _NOTICED_S) for since_t in user.open.values())
        return any(
            began_t < connected_t and ended_t > open_t
            for began_t, ended_t in chain(user.closed, still_open)
        )

    def _fault_s(self, words: tuple[str, ...], from_t: float, upto_t: float) -> float:
        """Return how many seconds faults with these words in their names lasted in that time."""
        return sum(
            max(0.0, min(fault.ended_t or self._t, upto_t) - max(fault.began_t, from_t))
            for fault in self._faults
            if _RABBITMQ not in fault.kind and any(word in fault.kind for word in words)
        )


def _is_due(event: PresenceReported, earlier: dict[int, PresenceReported]) -> bool:
    """Return whether an event repeats one of `earlier`, or has a larger `seq` than all."""
    first = earlier.get(event.seq)
    if first is None:
        return all(seq < event.seq for seq in earlier)
    return replace(event, t=first.t, decided_t=first.decided_t) == first
