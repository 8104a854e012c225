"""
How long bridges wait for each other before time decides something.

A bridge may have delivered a message in time, and not be able to write that yet. So each
bridge reports whenever it polls how far it has written what it knows, and in a poll time
decides only what was due before the earliest report (scripts/receipts.py). Reports are times of
the server's clock, because those of bridges differ.

A bridge whose report is older than `gone_s` has crashed or cannot reach the server, and is not
waited for any longer. An outage of the server makes all reports old. So only a bridge that has
polled without interruption for as long may judge that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from bridge.inbox.redis.protocol import Argument

# All tags are polled every five seconds. A shorter outage is not noticed.
_INTERRUPTION_S: Final = 7.0
_NEVER_S: Final = 1e12


@dataclass(frozen=True, slots=True)
class _Polls:
    """
    Polls of one server without interruption, in real time.

    Attributes:
        since_s: When they began.
        last_s: When the last one was answered.
        ahead_s: How far the server's clock is ahead of real time, at least.

    """

    since_s: float = inf
    last_s: float = -inf
    ahead_s: float = 0.0


class BridgeReports:
    """
    The reports of one bridge, and which reports of others it may call too old.

    Args:
        real_s: Returns real time.
        gone_s: After so long without a report another bridge is not waited for.

    """

    def __init__(self, *, real_s: Callable[[], float], gone_s: float) -> None:
        self._real_s = real_s
        self._gone_s = gone_s
        self._polls: dict[int, _Polls] = {}

    @property
    def tags(self) -> list[int]:
        """The tags that hold reports of this bridge."""
        return list(self._polls)

    def arguments(self, tag: int, *, unwritten_s: float) -> tuple[Argument, ...]:
        """
        Return the arguments of a poll that are about reports.

        Args:
            tag: The tag that holds the reports.
            unwritten_s: How long this bridge has known something that is not written yet.

        """
        now_s, polls = self._real_s(), self._polls.get(tag, _Polls())
        # The server does not stamp the report: the network may delay it, and marks with it.
        server_s = repr(now_s + polls.ahead_s) if polls.since_s < inf else ""
        may_judge = self._are_going_on(polls) and now_s - polls.since_s >= self._gone_s
        gone_s = self._gone_s if may_judge else _NEVER_S
        return repr(unwritten_s), server_s, repr(gone_s)

    def note(self, tag: int, server_s: float) -> None:
        """Note that a poll was answered, and the server's time in it."""
        now_s, polls = self._real_s(), self._polls.get(tag, _Polls())
        since_s = polls.since_s if self._are_going_on(polls) else now_s
        self._polls[tag] = _Polls(since_s, now_s, server_s - now_s)

    def _are_going_on(self, polls: _Polls) -> bool:
        return self._real_s() - polls.last_s <= _INTERRUPTION_S
