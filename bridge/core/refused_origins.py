"""Which pages were refused for their origin lately: a few names, for people."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

KEPT: Final = 20
_NAME_MAX_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class RefusedOrigin:
    """
    One origin.

    Attributes:
        origin: As the browser, or whoever wrote the header, told it; ``None`` without one.
        count: How often its pages were refused, since it is known.
        last_s: Unix time of the last time.

    """

    origin: str | None
    count: int
    last_s: float


class RefusedOrigins:
    """The last distinct origins. Who writes the header may invent them, so they are few."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str | None, RefusedOrigin] = OrderedDict()

    def note(self, origin: str | None, at_s: float) -> None:
        """A page of `origin` was refused."""
        name = None if origin is None else _readable(origin)
        before = self._by_name.pop(name, None)
        count = before.count + 1 if before else 1
        self._by_name[name] = RefusedOrigin(name, count, at_s)
        if len(self._by_name) > KEPT:
            self._by_name.popitem(last=False)

    def newest_first(self) -> list[RefusedOrigin]:
        """Return them, the one that was refused last first."""
        return list(reversed(self._by_name.values()))


def _readable(origin: str) -> str:
    """Return what JSON can hold: a header's bytes may be anything."""
    raw = origin.encode(errors="surrogateescape")
    return raw.decode(errors="backslashreplace")[:_NAME_MAX_CHARACTERS]
