"""The origins that were refused lately, for operators."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

KEPT: Final = 20
_NAME_MAX_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class RefusedOrigin:
    """
    A refused origin.

    Attributes:
        origin: The header `Origin`; ``None`` if the request had none.
        count: Refusals since the origin was added.
        last_s: Unix time of the last refusal.

    """

    origin: str | None
    count: int
    last_s: float


class RefusedOrigins:
    """The last distinct origins; at most `KEPT`, because clients can forge the header."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str | None, RefusedOrigin] = OrderedDict()

    def note(self, origin: str | None, at_s: float) -> None:
        """Count a refusal of `origin`."""
        name = None if origin is None else _readable(origin)
        before = self._by_name.pop(name, None)
        count = before.count + 1 if before else 1
        self._by_name[name] = RefusedOrigin(name, count, at_s)
        if len(self._by_name) > KEPT:
            self._by_name.popitem(last=False)

    def newest_first(self) -> list[RefusedOrigin]:
        """Return the origins, the one refused last first."""
        return list(reversed(self._by_name.values()))


def _readable(origin: str) -> str:
    """Return valid Unicode: the bytes of a header may be arbitrary."""
    raw = origin.encode(errors="surrogateescape")
    return raw.decode(errors="backslashreplace")[:_NAME_MAX_CHARACTERS]
