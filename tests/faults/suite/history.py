"""
What happened, as a list of events: written down as it happens, read by the checker.

A message is named by its user, its producer and the producer's own number. A history is
a file of JSON lines, one event each: `{"Confirmed": {"t": 1.25, "user": "u1", ...}}`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Self, TextIO, get_args

import orjson


@dataclass(frozen=True, slots=True)
class Invoked:
    """A producer is about to publish; with an id it will go on until it is confirmed."""

    t: float
    user: str
    producer: str
    number: int
    has_id: bool = False
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The broker has it for good."""

    t: float
    user: str
    producer: str
    number: int


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A publish ended without a confirm: it may have arrived or not."""

    t: float
    user: str
    producer: str
    number: int


@dataclass(frozen=True, slots=True)
class Opened:
    """
    A window loads its page; the first time, or anew.

    `keeps_place` says whether the page brings the last position of the one before.
    """

    t: float
    window: str
    user: str
    keeps_place: bool


@dataclass(frozen=True, slots=True)
class Connected:
    """
    A page's socket is connected.

    `recovered` is the stock client's word when it reconnected; `None` for the first
    time, and for clients that know no such thing.
    """

    t: float
    window: str
    recovered: bool | None


@dataclass(frozen=True, slots=True)
class Received:
    """A window got a message."""

    t: float
    window: str
    user: str
    producer: str
    number: int
    position: str


@dataclass(frozen=True, slots=True)
class Synced:
    """A window was told what its replay brought."""

    t: float
    window: str
    is_complete: bool
    missed: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Acked:
    """A window's ack was answered."""

    t: float
    window: str
    position: str
    is_ok: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A window's socket went away."""

    t: float
    window: str
    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A window was closed for good before the end; nothing more is expected of it."""

    t: float
    window: str


@dataclass(frozen=True, slots=True)
class Spread:
    """All windows are there: so many at each bridge."""

    t: float
    windows: list[int]


@dataclass(frozen=True, slots=True)
class SetAside:
    """A message was found among the dead letters."""

    t: float
    user: str
    producer: str
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class FaultBegan:
    """A fault is put in."""

    t: float
    round: int
    kind: str


@dataclass(frozen=True, slots=True)
class FaultEnded:
    """A fault was mended; `happened` is false if its moment never came."""

    t: float
    round: int
    kind: str
    happened: bool


@dataclass(frozen=True, slots=True)
class Alive:
    """After all faults of a round were mended, a new message reached every window."""

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
    | Spread
    | SetAside
    | FaultBegan
    | FaultEnded
    | Alive
)
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


class History:
    """Writes events down and tells whoever listens. Times are seconds since its start."""

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
        """Now."""
        return round(monotonic() - self._start_s, 4)

    def add(self, event: Event) -> None:
        """Write `event` down."""
        if self._file is not None:
            line = orjson.dumps({type(event).__name__: event})
            self._file.write(line.decode() + "\n")
        self._listener(event)

    def flush(self) -> None:
        """Let others read what was written so far."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_history(path: Path) -> Iterator[Event]:
    """Yield the events of a file that `History` wrote."""
    with path.open("rb") as file:
        for line in file:
            ((name, values),) = orjson.loads(line).items()
            kind = KINDS[name]
            yield kind(**{field.name: values[field.name] for field in fields(kind)})
