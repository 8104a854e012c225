"""
Pages of dead letters: a scan from the head of the queue, and a cursor that survives change.

A cursor names the last letters of the page before and how deep the last one lay. Letters
leave from anywhere and come at the end, so a letter only ever moves towards the head: the
next page begins behind the last one of those that is still there. If all of them are
gone, it begins with the first letter that is as young: some may come twice, none is missed.
"""

from dataclasses import dataclass, field
from typing import Final

from bridge.core.dead_letter import Letter, LetterFilter
from bridge.http.api.paging import bad_cursor, parse_cursor, render_cursor

_ANCHORS: Final = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended."""

    depth: int  # letters up to the last one of the page
    dead_s: float | None  # when that one was set aside
    anchors: tuple[str, ...]  # ids of the last ones of the page

    def render(self) -> str:
        """Return it as a cursor."""
        return render_cursor([self.depth, self.dead_s, list(self.anchors)])


def parse_place(cursor: str) -> Place:
    """
    Return the place that a cursor names.

    Raises:
        ApiProblem: If it is none of ours.

    """
    match parse_cursor(cursor):
        case [int(depth), None | int() | float() as dead_s, [*anchors]] if (
            depth >= 0 and all(isinstance(anchor, str) for anchor in anchors)
        ):
            return Place(depth, dead_s, tuple(map(str, anchors)))
    raise bad_cursor()


@dataclass(slots=True)
class PageScan:
    """Collects one page while letters pass by, oldest first; give each to `take`."""

    wanted: LetterFilter
    limit: int
    after: Place | None = None
    items: list[Letter] = field(default_factory=list)
    scanned: int = 0
    _places: list[int] = field(default_factory=list)
    _has_more: bool = False
    _is_behind: bool = False

    def take(self, letter: Letter) -> bool:
        """Look at one letter; false if no more are needed."""
        self.scanned += 1
        if self.after is not None and self.scanned <= self.after.depth:
            if letter.id in self.after.anchors:
                self._begin_again()
                return True
            if not self._is_behind and not self._is_as_young(letter, self.after):
                return True
        self._is_behind = True
        if self.wanted.matches(letter):
            if len(self.items) < self.limit:
                self.items.append(letter)
                self._places.append(self.scanned)
            else:
                self._has_more = True
        # A later anchor may still say that all this was on the page before.
        is_settled = self.after is None or self.scanned >= self.after.depth
        return not (self._has_more and is_settled)

    @property
    def next(self) -> str | None:
        """The cursor of the next page; ``None`` if there is none."""
        if not self._has_more:
            return None
        anchors = tuple(letter.id for letter in self.items[-_ANCHORS:])
        return Place(self._places[-1], self.items[-1].dead_s, anchors).render()

    def _begin_again(self) -> None:
        self.items.clear()
        self._places.clear()
        self._has_more = False
        self._is_behind = True

    @staticmethod
    def _is_as_young(letter: Letter, place: Place) -> bool:
        if place.dead_s is None or letter.dead_s is None:
            return place.dead_s is None
        return letter.dead_s >= place.dead_s
