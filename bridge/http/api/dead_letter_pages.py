"""
Pages of dead letters: a scan from the head of the queue, and a cursor that survives changes.

A cursor names the last dead letters of the previous page and the depth of the last one.
Dead letters leave the queue anywhere and arrive at its end, so each one only ever moves
towards the head: the next page begins after the last of the named ones that is still in the
queue. If all of them are gone, it begins with the first one that was dead-lettered no earlier.
Some dead letters may then appear on both pages, but none is skipped.
"""

from dataclasses import dataclass, field
from typing import Final

from bridge.core.contracts.operator.dead_letters import DeadLetterFilter
from bridge.core.dead_letter import StoredDeadLetter
from bridge.http.api.paging import bad_cursor, parse_cursor, render_cursor

_ANCHORS: Final = 8


@dataclass(frozen=True, slots=True)
class PageEnd:
    """
    Where a page ended.

    Attributes:
        depth: Dead letters from the head of the queue to the last one of the page.
        dead_s: Unix time at which the last one was dead-lettered; ``None`` if unknown.
        anchors: Ids of the last dead letters of the page.

    """

    depth: int
    dead_s: float | None
    anchors: tuple[str, ...]

    def render(self) -> str:
        """Return this place as a cursor."""
        return render_cursor([self.depth, self.dead_s, list(self.anchors)])

    def is_before(self, letter: StoredDeadLetter) -> bool:
        """Return whether `letter` was dead-lettered no earlier than the end of the page."""
        if self.dead_s is None or letter.dead_s is None:
            return self.dead_s is None
        return letter.dead_s >= self.dead_s


def parse_page_end(cursor: str) -> PageEnd:
    """
    Return the place that `cursor` names.

    Raises:
        ApiProblem: 422, if `cursor` is not one of a page of dead letters.

    """
    match parse_cursor(cursor):
        case [int(depth), None | int() | float() as dead_s, [*anchors]] if (
            depth >= 0 and all(isinstance(anchor, str) for anchor in anchors)
        ):
            return PageEnd(depth, dead_s, tuple(map(str, anchors)))
    raise bad_cursor()


@dataclass(slots=True)
class PageScan:
    """Collects one page from all dead letters, which `take` receives oldest first."""

    wanted: DeadLetterFilter
    limit: int
    after: PageEnd | None = None
    items: list[StoredDeadLetter] = field(default_factory=list)
    scanned: int = 0
    _depths: list[int] = field(default_factory=list)
    _has_more: bool = False
    _is_after_start: bool = False

    def take(self, letter: StoredDeadLetter) -> bool:
        """Consider one dead letter; return false once the page is complete."""
        self.scanned += 1
        if self.after is not None and self.scanned <= self.after.depth:
            if letter.id in self.after.anchors:
                self._restart()
                return True
            if not self._is_after_start and not self.after.is_before(letter):
                return True
        self._is_after_start = True
        if self.wanted.matches(letter):
            if len(self.items) < self.limit:
                self.items.append(letter)
                self._depths.append(self.scanned)
            else:
                self._has_more = True
        # Until the previous page's depth is reached, another anchor may still follow. It
        # would show that everything collected so far was on the previous page.
        is_settled = self.after is None or self.scanned >= self.after.depth
        return not (self._has_more and is_settled)

    @property
    def next(self) -> str | None:
        """The cursor of the next page; ``None`` if this page is the last."""
        if not self._has_more:
            return None
        anchors = tuple(letter.id for letter in self.items[-_ANCHORS:])
        return PageEnd(self._depths[-1], self.items[-1].dead_s, anchors).render()

    def _restart(self) -> None:
        self.items.clear()
        self._depths.clear()
        self._has_more = False
        self._is_after_start = True
