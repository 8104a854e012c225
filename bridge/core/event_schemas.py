"""
Checks the data of messages by compiled JSON Schemas (2020-12), one for each event.

The validator is jsonschema-rs: maintained, MIT, typed, without dependencies, one wheel for
every Python from 3.10 on (abi3). It accepts a message of 185 bytes in 0.6 µs; jsonschema
needs 65 µs, and fastjsonschema 2.9 µs and ends at draft 7. Parsing the JSON takes 0.6 µs.
It can also be prevented from fetching references, and its pattern engine runs in linear
time, so no message can make a pattern run for long.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import jsonschema_rs

# The base of the files of a folder. The name never resolves (RFC 2606), and nothing tries
# to resolve it.
BASE_URI: Final = "https://schemas.invalid/"
# Limits of the text in a dead letter. Producers choose the keys that a pointer contains.
_POINTER_MAX_CHARACTERS: Final = 300
_TEXT_MAX_CHARACTERS: Final = 300
# Errors that the library may collect in all branches of unions: about 50 ms.
_FAULTS_MAX: Final = 5000


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

    def violation(self, data: object) -> Violation | None:
        """Return the first violation; ``None`` if `data` is valid."""


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """
    The schema of a file.

    Attributes:
        validator: Has a mask, so that its messages contain no values.
        file: The path of the file in the folder.
        branches: The number of branches in all `anyOf` and `oneOf` that it can reach.

    """

    validator: jsonschema_rs.Validator
    file: str
    branches: int

    def violation(self, data: object) -> Violation | None:
        """Return the first violation; ``None`` if `data` is valid."""
        if self.validator.is_valid(data):
            return None
        # For a failed union the library collects all errors of all branches, at 10 µs each.
        # One body of 256 KiB can have a million of them, and this code blocks the event
        # loop. The violation of a body above the limit therefore has no place.
        if self.branches and not _has_at_most(data, _FAULTS_MAX // self.branches):
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

    def violation(self, data: object) -> Violation:  # noqa: ARG002 - as in EventSchema
        """Return the violation that the event has no schema."""
        return Violation(
            "",
            "the event has no file in BRIDGE_SCHEMAS, and unknown events are refused",
        )


_MISSING: Final = MissingSchema()


@dataclass(frozen=True, slots=True)
class EventSchemas:
    """The schemas of a folder. A reload replaces the whole object."""

    schemas: Mapping[str, EventSchema]
    refuses_unknown: bool

    def find(self, event: str) -> EventSchema | None:
        """Return the schema of `event`; ``None`` if any data is valid."""
        schema = self.schemas.get(event)
        if schema is None and self.refuses_unknown:
            return _MISSING
        return schema


def _has_at_most(data: object, count: int) -> bool:
    """Return whether `data` has at most `count` values; stop counting above it."""
    waiting = [data]
    while waiting:
        count -= 1
        if count < 0:
            return False
        value = waiting.pop()
        if isinstance(value, dict):
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
