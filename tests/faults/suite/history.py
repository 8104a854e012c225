"""
The history of a run: events that are recorded as they happen and read by the checker.

A message is identified by its user, its producer and the producer's number. A history file
has one JSON object per event: `{"Confirmed": {"t": 1.25, "user": "u1", ...}}`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Self, TextIO, get_args

import orjson


@dataclass(frozen=True, slots=True)
class Invoked:
    """
    A producer is about to publish; with an id it retries until the confirm.

    A message with a key replaces the earlier ones of its producer with that key, and may
    retain or clear it. A tracked one asks for a receipt.
    """

    t: float
    user: str
    producer: str
    number: int
    has_id: bool = False
    is_bad: bool = False
    key: str | None = None
    is_retained: bool = False
    is_cleared: bool = False
    is_tracked: bool = False


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The broker confirmed a message."""

    t: float
    user: str
    producer: str
    number: int


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A publish ended without a confirm: the message may have arrived or not."""

    t: float
    user: str
    producer: str
    number: int


@dataclass(frozen=True, slots=True)
class Opened:
    """
    A window loads or reloads its page.

    `keeps_position` is true if the page resumes from the last position of the page before.
    """

    t: float
    window: str
    user: str
    keeps_position: bool


@dataclass(frozen=True, slots=True)
class Connected:
    """
    A page's socket is connected.

    `recovered` is the flag of the stock client after a reconnect; `None` for the first
    connection, and for clients without the flag.
    """

    t: float
    window: str
    recovered: bool | None


@dataclass(frozen=True, slots=True)
class Received:
    """A window received a message."""

    t: float
    window: str
    user: str
    producer: str
    number: int
    position: str


@dataclass(frozen=True, slots=True)
class Synced:
    """A window received the summary of its replay."""

    t: float
    window: str
    is_complete: bool | None
    missed: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Acked:
    """The bridge answered a window's ack."""

    t: float
    window: str
    position: str
    is_ok: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A window's socket disconnected."""

    t: float
    window: str
    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A window was closed before the end; it need not receive anything more."""

    t: float
    window: str


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """All windows are connected; `windows` has the count of each bridge."""

    t: float
    windows: list[int]


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A message was found among the dead letters."""

    t: float
    user: str
    producer: str
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reported:
    """
    A worker received an event about a message; a repeat of the event has the same id.

    Usually it is the final outcome; `undelivered` comes before it. `delay_ms` is the time
    since bridge received the message, by its wall clock.
    """

    t: float
    user: str
    producer: str
    number: int
    outcome: str
    event_id: str
    delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class PresenceReported:
    """
    A worker received that a user came online or, without windows, went offline.

    A repeat has the same id. `at` is the time in the event, by the clock of a bridge;
    `decided_t` is the same as a time of the history.
    """

    t: float
    user: str
    windows: int
    seq: int
    event_id: str
    at: str
    decided_t: float


@dataclass(frozen=True, slots=True)
class PresenceCounted:
    """A bridge said how many windows each user has on all bridges; -1 without an answer."""

    t: float
    bridge: str
    windows: dict[str, int]


@dataclass(frozen=True, slots=True)
class FaultStarted:
    """The injection of a fault began."""

    t: float
    round: int
    kind: str


@dataclass(frozen=True, slots=True)
class FaultEnded:
    """A fault was healed; `happened` is false if the moment for it never came."""

    t: float
    round: int
    kind: str
    happened: bool


@dataclass(frozen=True, slots=True)
class Overdue:
    """A message did not reach a window during a fault that must not hold it up."""

    t: float
    window: str
    user: str
    producer: str
    number: int


@dataclass(frozen=True, slots=True)
class Alive:
    """After all faults of a round were healed, a new message reached every window."""

    t: float
    round: int
    after_s: float


Event = (
    Invoked
    | Confirmed
    | Ambiguous
    | Opened
    | Connected
    | Received
    | Synced
    | Acked
    | Disconnected
    | Closed
    | WindowCounts
    | DeadLettered
    | Reported
    | PresenceReported
    | PresenceCounted
    | FaultStarted
    | FaultEnded
    | Overdue
    | Alive
)
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


class History:
    """Writes events to a file and to a listener. Times are seconds since its creation."""

    def __init__(self, file: TextIO | None, listener: Callable[[Event], None]) -> None:
        self._file = file
        self._listener = listener
        self._start_s = monotonic()

    @classmethod
    def at(cls, path: Path, listener: Callable[[Event], None]) -> Self:
        """Write to a new file at `path`."""
        return cls(path.open("w", buffering=1 << 20, encoding="utf-8"), listener)

    @property
    def t(self) -> float:
        """The current time."""
        return round(monotonic() - self._start_s, 4)

    def add(self, event: Event) -> None:
        """Record `event`."""
        if self._file is not None:
            line = orjson.dumps({type(event).__name__: event})
            self._file.write(line.decode() + "\n")
        self._listener(event)

    def flush(self) -> None:
        """Write buffered events to the file, for readers."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Write buffered events and close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_history(path: Path) -> Iterator[Event]:
    """Yield the events of a file that `History` wrote."""
    with path.open("rb") as file:
        for line in file:
            ((name, values),) = orjson.loads(line).items()
            kind = KINDS[name]
            names = {field.name for field in fields(kind)} & values.keys()
            yield kind(**{name: values[name] for name in names})
