"""Answers that several bridges give together, and how many bridges are missing from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bridge.core.contracts.operator.users import PresenceStep, WindowFacts


@dataclass(frozen=True, slots=True)
class Coverage:
    """
    The bridges that an answer covers.

    Attributes:
        bridges: Bridges that answered, this one included.
        silent: Other bridges that were asked and did not answer in time; ``None`` if it
            is not known how many there are.

    """

    bridges: int
    silent: int | None

    def without(self, count: int) -> "Coverage":
        """Return the coverage if `count` of the answers turn out to be unusable."""
        silent = None if self.silent is None else self.silent + count
        return Coverage(self.bridges - count, silent)


THIS_BRIDGE: Final = Coverage(bridges=1, silent=0)


@dataclass(frozen=True, slots=True)
class FleetAnswers:
    """
    The answers of the other bridges to one question.

    Attributes:
        answers: Decoded JSON in order of arrival, from bridges of any version.
        silent: As in `Coverage`.

    """

    answers: Sequence[Any]
    silent: int | None

    @property
    def coverage(self) -> Coverage:
        """The bridges that answered, and this one."""
        return Coverage(1 + len(self.answers), self.silent)


@dataclass(frozen=True, slots=True)
class OnlineUser:
    """How many windows a user has, and the Unix time at which the last one connected."""

    windows: int
    last_connect_s: float | None


@dataclass(frozen=True, slots=True)
class UserWindows:
    """
    The windows of one user, oldest first, and when the last one connected.

    `presence` are the last changes of the user's presence, newest first.
    """

    windows: Sequence[WindowFacts]
    last_connect_s: float | None
    coverage: Coverage
    presence: Sequence[PresenceStep] = ()

    @property
    def are_known(self) -> bool:
        """Whether the user has a window, or had one that a journal remembers."""
        return bool(self.windows or self.presence)
