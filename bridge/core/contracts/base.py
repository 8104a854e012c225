"""Shared parts of the contracts: types of strings, closed lists, the base class."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import partial
from typing import Annotated, Final

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from bridge.core.json_text import render_json
from bridge.core.message import (
    EVENT_NAME_MAX_CHARACTERS,
    MESSAGE_ID_MAX_BYTES,
    USER_MAX_BYTES,
    event_problem,
    user_problem,
)
from bridge.core.message_options import (
    KEY_MAX_BYTES,
    key_problem,
    throttle_problem,
    undelivered_after_problem,
)
from bridge.enums import (
    EVENT_DEFAULT,
    RESERVED_EVENTS,
    RESERVED_PREFIX,
    Closing,
    DeadLetterReason,
    Refusal,
    RequestOutcome,
    SyncReason,
)

# The AMQP property `type` is a short string, which holds at most 255 bytes.
EVENT_NAME_MAX_BYTES: Final = 255
# Well below the 2^32 ms that RabbitMQ accepts as the expiration of a message.
TTL_MAX_S: Final = 30 * 86400

# --- types of strings ---------------------------------------------------------------------


def _without(problem_of: Callable[[str], str | None]) -> AfterValidator:
    """Return a validator of strings in which `problem_of` finds no problem."""

    def check(text: str) -> str:
        problem = problem_of(text)
        if problem:
            raise ValueError(problem)
        return text

    return AfterValidator(check)


def _event_problem(event: str) -> str | None:
    return event_problem(event) or _length_problem(event, EVENT_NAME_MAX_BYTES)


def _check_data(data: object) -> object:
    # Everything that was parsed from JSON can be written as JSON, with one exception:
    # orjson parses deeper nesting than it writes.
    try:
        render_json(data)
    except orjson.JSONEncodeError as exc:
        message = "is nested too deep"
        raise ValueError(message) from exc
    return data


def _length_problem(text: str, max_bytes: int) -> str | None:
    if not text:
        return "is empty"
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return (
        f"has {length} bytes, allowed are {max_bytes}" if length > max_bytes else None
    )


# `not` with an unanchored pattern instead of an anchored one: in some engines, Python's
# among them, `$` also matches before a final line feed.
CONTROL_CHARACTER: Final = {"pattern": "[\\u0000-\\u001f\\u007f-\\u009f]"}

User = Annotated[
    str,
    _without(user_problem),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": USER_MAX_BYTES,
            "not": CONTROL_CHARACTER,
        }
    ),
]
Event = Annotated[
    str,
    _without(_event_problem),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": EVENT_NAME_MAX_CHARACTERS,
            "not": {
                "anyOf": [
                    {"enum": sorted(RESERVED_EVENTS)},
                    {"pattern": f"^{RESERVED_PREFIX}"},
                    CONTROL_CHARACTER,
                ]
            },
        }
    ),
]
MessageId = Annotated[
    str,
    _without(partial(_length_problem, max_bytes=MESSAGE_ID_MAX_BYTES)),
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": MESSAGE_ID_MAX_BYTES}
    ),
]
Key = Annotated[
    str,
    _without(key_problem),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": KEY_MAX_BYTES,
            "not": CONTROL_CHARACTER,
        }
    ),
]
_DURATION: Final = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$"}
Throttle = Annotated[str, _without(throttle_problem), WithJsonSchema(_DURATION)]
UndeliveredAfter = Annotated[
    str, _without(undelivered_after_problem), WithJsonSchema(_DURATION)
]
AnyJson = Annotated[object, AfterValidator(_check_data), WithJsonSchema({})]
# The default of a field that is left out, which no sender writes as null.
Absent = SkipJsonSchema[None]


def listed(words: Iterable[StrEnum]) -> WithJsonSchema:
    """Return the schema of a closed list, inline instead of in `$defs`."""
    return WithJsonSchema({"type": "string", "enum": [word.value for word in words]})


def explained(
    words: Iterable[DeadLetterReason | Refusal | Closing | SyncReason | RequestOutcome],
    intro: str,
) -> str:
    """Return a description that ends with the meaning of each word."""
    return "\n".join(
        [intro, *(f"- `{word.value}`: {word.explanation}" for word in words)]
    )


class Contract(BaseModel):
    """The base of all contracts: frozen, strict about types, and built at their first use."""

    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)


def examples(*values: JsonValue) -> ConfigDict:
    """Return the configuration of a model whose schema has these examples."""
    return ConfigDict(json_schema_extra={"examples": list(values)})


# --- descriptions that are used more than once --------------------------------------------

USER_TEXT: Final = (
    f"Whose windows get it: 1 to {USER_MAX_BYTES} bytes of UTF-8 without control characters. "
    "Dots, # and * are plain characters here."
)
EVENT_TEXT: Final = (
    f"The event that the page listens to; absent means `{EVENT_DEFAULT}`. At most "
    f"{EVENT_NAME_MAX_CHARACTERS} characters and {EVENT_NAME_MAX_BYTES} bytes, no control characters, "
    f"none of the reserved names, nothing that starts with `{RESERVED_PREFIX}`."
)
ID_TEXT: Final = (
    "Makes publishing again harmless: within BRIDGE_DEDUPE_WINDOW the same id for the same "
    f"user is stored once. At most {MESSAGE_ID_MAX_BYTES} bytes of UTF-8."
)
POSITION_TEXT: Final = (
    "A position is an opaque string: keep it, compare it for equality, send it back."
)
