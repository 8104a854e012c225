"""What several bridges tell together: whose word an answer is, and whose is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bridge.core.contracts.operator.users import WindowFacts
from bridge.core.trace import WindowFact


@dataclass(frozen=True, slots=True)
class Reach:
    """
    From how many bridges an answer comes.

    Attributes:
        bridges: Those that answered, this one included.
        silent: Others that were asked and did not answer in time; ``None`` = how many
            there are is not known.

    """

    bridges: int
    silent: int | None

    def without(self, count: int) -> "Reach":
        """Return the same with `count` answers that were of no use."""
        silent = None if self.silent is None else self.silent + count
        return Reach(self.bridges - count, silent)


ALONE: Final = Reach(bridges=1, silent=0)


@dataclass(frozen=True, slots=True)
class Heard:
    """
    What the other bridges said.

    Attributes:
        answers: In the order in which they came, decoded, from any version of a bridge.
        silent: As in `Reach`.

    """

    answers: Sequence[Any]
    silent: int | None

    @property
    def reach(self) -> Reach:
        """Whose word it is, ours included."""
        return Reach(1 + len(self.answers), self.silent)


@dataclass(frozen=True, slots=True)
class OnlineUser:
    """Somebody who has windows, and when the last of them was let in."""

    windows: int
    last_connect_s: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """The windows of one user, the oldest first, and when the last was let in."""

    windows: Sequence[WindowFacts]
    last_connect_s: float | None
    reach: Reach

    @property
    def facts(self) -> list[WindowFact]:
        """What they have been given."""
        return [WindowFact(each.offset, each.acks == "manual") for each in self.windows]
