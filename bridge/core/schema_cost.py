"""
An upper bound for the time in which a schema checks data.

The validator remembers the result of a recursive reference for each array and object, so it
checks data that is nested in itself only once. Everything else it checks as often as the
schema leads to it: once for each path through references, branches and other keywords. This
module counts those paths before the schema is used:

- The cost of a schema is its cost for the value itself (`here`) plus the cost for the values
  inside (`below`), added along one path into the data. The properties of one schema exclude
  each other on such a path, so only the most expensive one counts.
- A reference to a schema that is being visited is a return: the validator remembers its
  result. Each schema that has returns is counted once more on its own.
- `unevaluatedProperties` and `unevaluatedItems` find out which branches apply: the
  validator checks all branches again, on each level below.

A schema that leads back to itself without a step into the data has no meaning and is
refused.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

import jsonschema_rs

Schema = dict[str, object] | bool

# The budget of one check, in steps of about 30 ns: a second.
BUDGET_STEPS: Final = 1 << 25
# Data of up to 1 KiB is always within the budget of an accepted schema.
COST_MAX_STEPS: Final = BUDGET_STEPS >> 10
# A pattern of this size costs one step for each byte of a string.
_PATTERN_STEP_BYTES: Final = 128
PATTERN_MAX_BYTES: Final = 1 << 20
# Limits of the analysis itself.
_VISITS_MAX: Final = 30_000
_DEPTH_MAX: Final = 100
# A multiple of a fraction is computed with large integers.
_FRACTION_STEPS: Final = 1000
_RETURN_STEPS: Final = 4

_IN_PLACE_ONE: Final = ("not", "if", "then", "else")
_IN_PLACE_LISTS: Final = ("allOf", "anyOf", "oneOf")
META_SCHEMAS: Final = "https://json-schema.org/draft/2020-12/"
_REFERENCES: Final = ("$ref", "$dynamicRef")
_COMPARED: Final = ("const", "enum", "required", "dependentRequired")


class CheckCost(NamedTuple):
    """
    The cost of checking, for each value of the data.

    Attributes:
        steps: Steps of the validator for each value and each key.
        pattern_steps: Steps for each byte of the data, because of patterns.
        branches: Branches of unions.
        returns: References back into a schema that is being checked, on one path into the
            data. Without the validator's memory, two or more take exponential time.

    """

    steps: int = 0
    pattern_steps: int = 0
    branches: int = 0
    returns: int = 0

    def plus(self, *others: "CheckCost") -> "CheckCost":
        """Return the cost of doing all of these."""
        return CheckCost(*map(sum, zip(self, *others, strict=True)))

    def times(self, factor: int) -> "CheckCost":
        """Return the cost of doing this `factor` times."""
        return CheckCost(*(count * factor for count in self))

    def certain_bytes(self, budget_steps: int = BUDGET_STEPS) -> int:
        """Return the size up to which any data is within the budget."""
        return budget_steps // max(1, self.steps + self.pattern_steps)


# The meta-schema, which a schema may refer to.
_META_SCHEMA_COST: Final = CheckCost(steps=2000, branches=1, returns=2)


class _Cost(NamedTuple):
    """The cost of a schema for a value itself, and along a path into the value."""

    here: CheckCost
    below: CheckCost = CheckCost()
    height: int = 0  # levels of schemas for the value itself

    @property
    def total(self) -> CheckCost:
        return self.here.plus(self.below)


@dataclass(frozen=True, slots=True)
class _Place:
    """A schema in a document, and the base of its references."""

    node: object
    base: str


class _RefusedSchemaError(Exception):
    """The analysis ends with a problem."""


class CostAnalysis:
    """Analyzes documents that refer only to each other and to the meta-schema."""

    def __init__(self, documents: Mapping[str, Schema]) -> None:
        """Index `documents`, which are named by their URIs."""
        self._places: dict[str, _Place] = {}
        self._dynamic: dict[str, list[_Place]] = {}
        for uri, document in documents.items():
            self._index(document, uri)
        self._costs: dict[int, _Cost] = {}  # of schemas without returns
        self._returned_to: dict[int, _Place] = {}
        self._visits = 0

    def cost(self, uri: str) -> CheckCost | str:
        """Return the cost of the document at `uri`, or why it has no acceptable one."""
        self._visits = 0
        self._returned_to.clear()
        start = self._places[uri]
        waiting = {id(start.node): start}
        counted: dict[int, CheckCost] = {}
        try:
            while waiting:
                key, place = waiting.popitem()
                counted[key] = self._visit(place, {key: 0}, level=0, depth=0).total
                waiting |= {
                    key: place
                    for key, place in self._returned_to.items()
                    if key not in counted
                }
        except _RefusedSchemaError as exc:
            return str(exc)
        returns = max(cost.returns for cost in counted.values())
        cost = CheckCost().plus(*counted.values())._replace(returns=returns)
        if cost.steps + cost.pattern_steps > COST_MAX_STEPS:
            return (
                f"needs up to {cost.steps} steps for a value and {cost.pattern_steps} "
                f"for a byte, allowed are {COST_MAX_STEPS}: use fewer nested branches, "
                "fewer unevaluatedProperties or unevaluatedItems, or smaller patterns"
            )
        return cost

    def _index(self, document: Schema, uri: str) -> None:
        self._places[uri] = _Place(document, uri)
        waiting: list[tuple[object, str]] = [(document, uri)]
        while waiting:
            node, base = waiting.pop()
            if isinstance(node, list):
                waiting += ((child, base) for child in node)
            if not isinstance(node, dict):
                continue
            place = _Place(node, base)  # its own base follows from its $id
            base = _base(node, base)
            if base != place.base:
                self._places.setdefault(base, place)
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(node.get(keyword), str):
                    self._places.setdefault(f"{base}#{node[keyword]}", place)
            if isinstance(node.get("$dynamicAnchor"), str):
                self._dynamic.setdefault(str(node["$dynamicAnchor"]), []).append(place)
            waiting += ((child, base) for child in node.values())

    def _visit(
        self, place: _Place, stack: Mapping[int, int], *, level: int, depth: int
    ) -> _Cost:
        """
        Return the cost of a schema.

        Args:
            place: The schema.
            stack: The referenced schemas that are being visited, each with its level.
            level: The number of steps into the data.
            depth: The number of schemas that are being visited.

        """
        self._visits += 1
        if self._visits > _VISITS_MAX or depth > _DEPTH_MAX:
            problem = "has too many paths through its references and branches"
            raise _RefusedSchemaError(problem)
        node = place.node
        if not isinstance(node, dict):
            return _Cost(CheckCost(steps=1))
        base = _base(node, place.base)

        def visit(child: object, *, is_inside: bool = False) -> _Cost:
            return self._visit(
                _Place(child, base), stack, level=level + is_inside, depth=depth + 1
            )

        inner = [visit(child) for child in _in_place(node)]
        inner += self._referenced(_Place(node, base), stack, level=level, depth=depth)
        height = 1 + max((cost.height for cost in inner), default=0)
        here = _own_cost(node).plus(*(cost.here for cost in inner))
        below = CheckCost().plus(*(cost.below for cost in inner))
        if level < 0:  # only the cost here is of interest
            return _Cost(here, height=height)
        inside = [
            [visit(child, is_inside=True).total for child in children]
            for children in _exclusive(node)
        ]
        below = below.plus(*map(_most, inside))
        for pattern, child in _named(node, "patternProperties"):
            below = below.plus(
                _pattern_cost(pattern), visit(child, is_inside=True).total
            )
        if node.get("uniqueItems") is True:
            below = below.plus(CheckCost(steps=2))  # compares all values inside
        if "unevaluatedProperties" in node or "unevaluatedItems" in node:
            here, below = here.times(2 * height), below.times(2 * height)
        return _Cost(here, below, height)

    def _referenced(
        self, place: _Place, stack: Mapping[int, int], *, level: int, depth: int
    ) -> Iterator[_Cost]:
        for keyword in _REFERENCES:
            reference = child_of(place.node, keyword)
            if not isinstance(reference, str):
                continue
            if reference.startswith(META_SCHEMAS):
                yield _Cost(_META_SCHEMA_COST)
            for target in self._targets(keyword, urljoin(place.base, reference)):
                yield self._follow(target, stack, level=level, depth=depth)

    def _follow(
        self, target: _Place, stack: Mapping[int, int], *, level: int, depth: int
    ) -> _Cost:
        key = id(target.node)
        if key in stack:
            if level < 0 or stack[key] == level:
                problem = "refers to itself without a step into the data"
                raise _RefusedSchemaError(problem)
            self._returned_to[key] = target
            # Results are not remembered for strings, numbers and the like.
            again = self._visit(target, {key: -1}, level=-1, depth=depth + 1)
            extra = CheckCost(steps=_RETURN_STEPS, returns=1)
            return _Cost(again.here.plus(extra), height=again.height)
        if level >= 0 and key in self._costs:
            return self._costs[key]
        cost = self._visit(target, {**stack, key: level}, level=level, depth=depth + 1)
        if level >= 0 and not cost.total.returns:
            self._costs[key] = cost
        return cost

    def _targets(self, keyword: str, reference: str) -> Iterator[_Place]:
        """Yield the schemas that a reference may lead to."""
        uri, fragment = urldefrag(reference)
        found = [self._resolve(uri, unquote(fragment))]
        if keyword == "$dynamicRef":
            found += self._dynamic.get(fragment, [])
        seen: set[int] = set()
        for place in found:
            if place is not None and id(place.node) not in seen:
                seen.add(id(place.node))
                yield place

    def _resolve(self, uri: str, fragment: str) -> _Place | None:
        if fragment and not fragment.startswith("/"):
            return self._places.get(f"{uri}#{fragment}")
        place = self._places.get(uri)
        for step in fragment.split("/")[1:]:
            if place is None:
                return None
            child = child_of(place.node, step.replace("~1", "/").replace("~0", "~"))
            place = (
                child if child is None else _Place(child, _base(place.node, place.base))
            )
        return place


def child_of(node: object, step: str) -> object:
    """Return the child of a JSON value that a step of a JSON Pointer names, or ``None``."""
    if isinstance(node, dict):
        return node.get(step)
    if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
        child: object = node[int(step)]
        return child
    return None


def _base(node: object, base: str) -> str:
    own = node.get("$id") if isinstance(node, dict) else None
    return urldefrag(urljoin(base, own)).url if isinstance(own, str) else base


def _named(node: dict[str, object], keyword: str) -> Iterable[tuple[str, object]]:
    value = node.get(keyword)
    return value.items() if isinstance(value, dict) else ()


def _listed(node: dict[str, object], keyword: str) -> list[object]:
    value = node.get(keyword)
    return value if isinstance(value, list) else []


def _in_place(node: dict[str, object]) -> Iterator[object]:
    """Yield the subschemas for the same value."""
    yield from (node[keyword] for keyword in _IN_PLACE_ONE if keyword in node)
    for keyword in _IN_PLACE_LISTS:
        yield from _listed(node, keyword)
    for keyword in ("dependentSchemas", "dependencies"):
        yield from (child for _, child in _named(node, keyword))


def _exclusive(node: dict[str, object]) -> Iterator[list[object]]:
    """Yield groups of subschemas for values inside; one of each group applies to a value."""

    def one(keyword: str) -> list[object]:
        return [node[keyword]] if keyword in node else []

    properties = [child for _, child in _named(node, "properties")]
    yield properties + one("additionalProperties")
    yield _listed(node, "prefixItems") + one("items")
    for keyword in (
        "propertyNames",
        "contains",
        "unevaluatedProperties",
        "unevaluatedItems",
    ):
        yield one(keyword)


def _most(costs: list[CheckCost]) -> CheckCost:
    return CheckCost(*map(max, zip(*costs, strict=True))) if costs else CheckCost()


def _own_cost(node: dict[str, object]) -> CheckCost:
    """Return the cost of the keywords that have no subschemas."""
    steps = 1 + sum(_size(node[keyword]) for keyword in _COMPARED if keyword in node)
    if isinstance(node.get("multipleOf"), float):
        steps += _FRACTION_STEPS
    branches = len(_listed(node, "anyOf")) + len(_listed(node, "oneOf"))
    cost = CheckCost(steps, pattern_steps=int("format" in node), branches=branches)
    pattern = node.get("pattern")
    return cost.plus(_pattern_cost(pattern)) if isinstance(pattern, str) else cost


def _size(value: object) -> int:
    """Return the number of JSON values in `value`."""
    waiting = [value]
    for each in waiting:
        if isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return len(waiting)


@lru_cache(maxsize=1024)
def _pattern_cost(pattern: str) -> CheckCost:
    """
    Return the cost of a pattern for each byte.

    Its engine needs no time that is exponential, but may visit all states of the pattern
    for each byte. Their number follows from the memory that the compiled pattern needs.
    """
    size = 1 << 10
    while size < PATTERN_MAX_BYTES and not _compiles(pattern, size):
        size *= 2
    return CheckCost(steps=1, pattern_steps=size // _PATTERN_STEP_BYTES)


def _compiles(pattern: str, size: int) -> bool:
    options = jsonschema_rs.RegexOptions(size_limit=size)
    try:
        jsonschema_rs.Draft202012Validator(
            {"pattern": pattern}, pattern_options=options
        )
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True
