"""
What the data of an event may be: compiled JSON Schemas (2020-12), one for each event.

The validator is jsonschema-rs: maintained, MIT, typed, without dependencies, one wheel for
every Python from 3.10 on (abi3). It told a good message of 185 bytes in 0.6 µs where
fastjsonschema took 2.9 (and ends at draft 7) and jsonschema 65; the JSON itself takes 0.6
to read. Two more reasons: it never fetches a thing if told so, and it can match patterns
with an engine whose time is linear, so that no message can make a pattern run away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import jsonschema_rs

# Where the files of a folder seem to lie. The name can never be looked up (RFC 2606), and
# nothing tries to.
BASE_URI: Final = "https://schemas.invalid/"
# What a message may make of the text of its dead letter: keys stand in pointers.
_POINTER_MAX_CHARACTERS: Final = 300
_TEXT_MAX_CHARACTERS: Final = 300
# What may be wrong with one message in all branches of its unions; some 50 ms.
_FAULTS_MAX: Final = 5000


@dataclass(frozen=True, slots=True)
class Violation:
    """
    The first thing that is wrong with the data of a message.

    Attributes:
        pointer: A JSON Pointer (RFC 6901) to it; empty for the data as a whole.
        text: A sentence that names the place and the rule, and holds no value.

    """

    pointer: str
    text: str


class EventSchema(Protocol):
    """Judges the data of one event."""

    def violation(self, data: object) -> Violation | None:
        """Return what is wrong first; `None` if nothing is."""


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """
    A schema from a file.

    Attributes:
        validator: Made with a mask, so that its messages hold no values.
        file: Where it comes from.
        branches: How many there are in all `anyOf` and `oneOf` that it may come to.

    """

    validator: jsonschema_rs.Validator
    file: str
    branches: int

    def violation(self, data: object) -> Violation | None:
        """Return what is wrong first; `None` if nothing is."""
        if self.validator.is_valid(data):
            return None
        # With every failed union the library tells all that is wrong in all its branches:
        # 10 µs each, and one body of 256 KiB can have a million. Nobody may stop the loop
        # for that, so what is too large is told without the place.
        if self.branches and not _has_at_most(data, _FAULTS_MAX // self.branches):
            text = f"data breaks {self.file}; it is too large to look for the place"
            return Violation("", text)
        try:
            # Not iter_errors: it looks for all before it tells the first.
            self.validator.validate(data)
        except jsonschema_rs.ValidationError as exc:
            error = exc
        pointer = render_pointer(error.instance_path)
        place = _shown(pointer, _POINTER_MAX_CHARACTERS) or "its top"
        rule = (error.absolute_keyword_location or "").removeprefix(BASE_URI)
        problem = _shown(error.message, _TEXT_MAX_CHARACTERS)
        return Violation(pointer, f"data breaks {rule} at {place}: {problem}")


class MissingSchema:
    """Stands for an event that has no file, where that is a fault."""

    def violation(self, data: object) -> Violation:  # noqa: ARG002 - whatever it is
        """Refuse."""
        return Violation(
            "", "the event has no file in BRIDGE_SCHEMAS, and unknown ones are refused"
        )


_MISSING: Final = MissingSchema()


@dataclass(frozen=True, slots=True)
class EventSchemas:
    """All that a folder says of events. Replaced as a whole, never changed."""

    schemas: Mapping[str, EventSchema]
    refuses_unknown: bool

    def find(self, event: str) -> EventSchema | None:
        """Return what judges `event`; `None` if anything will do."""
        schema = self.schemas.get(event)
        if schema is None and self.refuses_unknown:
            return _MISSING
        return schema


def _has_at_most(data: object, count: int) -> bool:
    """Whether there are no more values in `data`; stops counting as soon as there are."""
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
    """Make text fit for a header, a log and a terminal: bounded, without controls."""
    if len(text) > max_characters:
        text = f"{text[: max_characters - 1]}…"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
