"""
Checks the data of messages by compiled JSON Schemas (2020-12), one for each event.

The validator is jsonschema-rs: maintained, MIT, typed, without dependencies, one wheel for
every Python from 3.10 on (abi3). It accepts a message of 185 bytes in 0.6 µs; jsonschema
needs 65 µs, and fastjsonschema 2.9 µs and ends at draft 7. Parsing the JSON takes 0.6 µs.
It can also be prevented from fetching references, and its pattern engine runs in linear
time.

No schema and no data can make a check run for long, because it blocks the event loop: a
schema is accepted only with a bound for its cost (`core/schema_cost.py`), data beyond the
budget is refused without a check, and `is_valid` alone decides. The place of a violation is
found by a slower search that remembers nothing, so only where that search is cheap, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import jsonschema_rs

from bridge.core.schema_cost import BUDGET_STEPS, CheckCost

# The base of the files of a folder. The name never resolves (RFC 2606), and nothing tries
# to resolve it.
BASE_URI: Final = "https://schemas.invalid/"
# The budget for the data of a request from a page, about 4 ms: a page may send many of them.
PAGE_BUDGET_STEPS: Final = BUDGET_STEPS >> 8
# Limits of the text in a dead letter. Producers choose the keys that a pointer contains.
_POINTER_MAX_CHARACTERS: Final = 300
_TEXT_MAX_CHARACTERS: Final = 300
# Limits of the search for the place, in steps: it collects all errors in the branches of
# unions, at 10 µs each. Both are about 100 ms.
_SEARCH_MAX_STEPS: Final = 2_000_000
_SEARCH_OF_UNIONS_MAX_STEPS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Violation:
    """
    The first violation of a schema by the data of a message.

    Attributes:
        pointer: A JSON Pointer (RFC 6901) to the place; empty for the data as a whole.
        text: A sentence that names the place and the rule, without any value.

    """

    pointer: str
    text: str


class EventSchema(Protocol):
    """Checks the data of one event."""

    def violation(self, data: object, *, size_bytes: int) -> Violation | None:
        """
        Return the first violation; ``None`` if `data` is valid.

        Args:
            data: A JSON value.
            size_bytes: The size of the JSON text of `data`, or more.

        """


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """
    The schema of a file.

    Attributes:
        validator: Has a mask, so that its messages contain no values.
        file: The path of the file in the folder.
        cost: The bound for the time of a check.
        budget_steps: The limit of one check.

    """

    validator: jsonschema_rs.Validator
    file: str
    cost: CheckCost
    budget_steps: int = BUDGET_STEPS

    @property
    def certain_bytes(self) -> int:
        """The size up to which data of any form is checked."""
        return self.cost.certain_bytes(self.budget_steps)

    def violation(self, data: object, *, size_bytes: int) -> Violation | None:
        """Return the first violation; ``None`` if `data` is valid."""
        if size_bytes > self.certain_bytes and not _is_within(
            data,
            self.budget_steps - size_bytes * self.cost.pattern_steps,
            self.cost.steps,
        ):
            text = f"data is too large to check it by {self.file}"
            return Violation("", text)
        if self.validator.is_valid(data):
            return None
        limit = _SEARCH_OF_UNIONS_MAX_STEPS if self.cost.branches else _SEARCH_MAX_STEPS
        limit = min(limit, self.budget_steps)
        if self.cost.returns > 1:
            text = f"data breaks {self.file}; it is too recursive to find the place"
            return Violation("", text)
        is_small = size_bytes * self.cost.steps <= limit
        if not is_small and not _is_within(data, limit, self.cost.steps):
            text = f"data breaks {self.file}; it is too large to find the place"
            return Violation("", text)
        try:
            # Not iter_errors: it collects all errors before it returns the first.
            self.validator.validate(data)
        except jsonschema_rs.ValidationError as exc:
            error = exc
        pointer = render_pointer(error.instance_path)
        place = _shown(pointer, _POINTER_MAX_CHARACTERS) or "its top"
        rule = (error.absolute_keyword_location or "").removeprefix(BASE_URI)
        problem = _shown(error.message, _TEXT_MAX_CHARACTERS)
        return Violation(pointer, f"data breaks {rule} at {place}: {problem}")


class MissingSchema:
    """The schema of an event without a file, if such events are refused."""

    def violation(self, data: object, *, size_bytes: int) -> Violation:  # noqa: ARG002 - as in EventSchema
        """Return the violation that the event has no schema."""
        return Violation(
            "",
            "the event has no file in BRIDGE_SCHEMAS, and unknown events are refused",
        )


_MISSING: Final = MissingSchema()


@dataclass(frozen=True, slots=True)
class EventSchemas:
    """
    The schemas of a folder. A reload replaces the whole object.

    Attributes:
        schemas: By event.
        refuses_unknown: Whether an event without a schema is refused.
        page_schemas: Of the requests from pages, by event.

    """

    schemas: Mapping[str, EventSchema]
    refuses_unknown: bool
    page_schemas: Mapping[str, EventSchema] = field(default_factory=dict)

    def find(self, event: str) -> EventSchema | None:
        """Return the schema of `event`; ``None`` if any data is valid."""
        return self._find(self.schemas, event)

    def find_for_page(self, event: str) -> EventSchema | None:
        """Return the schema of a request from a page; ``None`` if any data is valid."""
        return self._find(self.page_schemas, event)

    def _find(
        self, schemas: Mapping[str, EventSchema], event: str
    ) -> EventSchema | None:
        schema = schemas.get(event)
        if schema is None and self.refuses_unknown:
            return _MISSING
        return schema

    def limited(
        self, max_message_bytes: int, max_event_bytes: int
    ) -> Iterator[CompiledSchema]:
        """Yield the schemas that may refuse some valid data of up to these sizes."""
        for schemas, max_bytes in (
            (self.schemas, max_message_bytes),
            (self.page_schemas, max_event_bytes),
        ):
            for schema in schemas.values():
                if isinstance(schema, CompiledSchema) and (
                    schema.certain_bytes < max_bytes
                ):
                    yield schema


def _is_within(data: object, budget_steps: int, steps: int) -> bool:
    """Return whether `budget_steps` are enough for `steps` for each value and key."""
    waiting = [data]
    while waiting:
        budget_steps -= steps
        if budget_steps < 0:
            return False
        value = waiting.pop()
        if isinstance(value, dict):
            budget_steps -= steps * len(value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True


def render_pointer(path: list[str | int]) -> str:
    """Return the JSON Pointer of `path`."""
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return "".join(f"/{step}" for step in steps)


def _shown(text: str, max_characters: int) -> str:
    """Return text for a header, a log or a terminal: shortened, without controls."""
    if len(text) > max_characters:
        text = f"{text[: max_characters - 1]}…"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
