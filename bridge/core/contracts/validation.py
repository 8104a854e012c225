"""Validation of requests: from text to a model, or to the problem with it."""

from collections.abc import Iterable
from typing import Final

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bridge.core.contracts.messages import Problem, PublishRequest
from bridge.core.event_schemas import EventSchemas
from bridge.core.json_text import parse_json, parse_json_exactly
from bridge.core.message import MessageLimits
from bridge.core.message_options import undelivered_after_problem
from bridge.core.reason_phrase import reason_phrase
from bridge.enums import EVENT_DEFAULT

# Errors that need a change of the program that sends the request, and are answered with
# 400. All other errors are about values and are answered with 422 (RFC 9110, 15.5.21).
_MALFORMED_SUFFIXES: Final = ("extra_forbidden", "_type", "_parsing", "_unicode")


def parse_publish_request(body: bytes) -> PublishRequest | Problem:
    """Parse the body of `POST /api/publish`; a problem has the status 400 or 422."""
    try:
        # Not pydantic's own parser, which accepts NaN.
        fields = parse_json_exactly(body)
    except orjson.JSONDecodeError as exc:
        return _problem(400, f"the body is not JSON: {exc.msg} at {exc.pos}")
    try:
        return PublishRequest.model_validate(fields)
    except ValidationError as exc:
        return validation_problem(exc, known=PublishRequest.model_fields)


def publish_problem(
    request: PublishRequest,
    data: bytes,
    *,
    limits: MessageLimits,
    schemas: EventSchemas | None,
) -> Problem | None:
    """
    Return why a valid request would become a dead letter; ``None`` if it would not.

    Args:
        request: The request.
        data: Its data as JSON.
        limits: The operator's bounds.
        schemas: What the data of events must be; ``None`` allows any JSON.

    """
    if len(data) > limits.body_bytes:
        allowed = f"allowed are {limits.body_bytes} (BRIDGE_MAX_MESSAGE_BYTES)"
        text = f"data has {len(data)} bytes, {allowed}"
        return _problem(413, text, pointer="/data")
    after = request.undelivered_after
    fault = after and undelivered_after_problem(after, max_age_s=limits.max_age_s)
    if fault:
        text = f"undelivered_after {fault}"
        return _problem(422, text, pointer="/undelivered_after")
    return data_problem(request.event, data, schemas)


def data_problem(
    event: str | None,
    data: bytes,
    schemas: EventSchemas | None,
    *,
    pointer: str | None = None,
) -> Problem | None:
    """
    Return why data is not what the schema of its event allows; ``None`` if it is.

    Args:
        event: The event's name; ``None`` for the default one.
        data: The JSON that clients would receive.
        schemas: ``None`` allows any JSON.
        pointer: The parameter that holds the data; ``None`` if it is the body's field
            `data`.

    """
    schema = None if schemas is None else schemas.find(event or EVENT_DEFAULT)
    if schema is None:
        return None
    violation = schema.violation(parse_json(data), size_bytes=len(data))
    if violation is None:
        return None
    place = f"/data{violation.pointer}" if pointer is None else pointer
    return _problem(422, violation.text, pointer=place)


def validation_problem(
    error: ValidationError, *, known: Iterable[str], in_query: bool = False
) -> Problem:
    """
    Describe the most important fault of a request, without quoting any value of it.

    A malformed request (400: an unknown field or a wrong type) takes precedence over a
    value that cannot be used (422).

    Args:
        error: The faults, as pydantic found them.
        known: The names that are allowed.
        in_query: Whether the request's query was validated, and not its body.

    Returns:
        A problem that points to the parameter, or with a JSON Pointer (RFC 6901) into
        the body, which is empty for the body as a whole.

    """
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    details = min(errors, key=lambda each: not _is_malformed(each))
    names = [json_safe(str(part)[:100]) for part in details["loc"]]
    if in_query:
        pointer = names[0] if names else ""
    else:
        pointer = "".join(
            f"/{name.replace('~', '~0').replace('/', '~1')}" for name in names
        )
    text = _sentence(".".join(names), details, known, in_query=in_query)
    return _problem(400 if _is_malformed(details) else 422, text, pointer=pointer)


def json_safe(text: str) -> str:
    """Return `text` with lone surrogates escaped, which JSON cannot hold."""
    return text.encode(errors="backslashreplace").decode()


def _problem(status: int, detail: str, *, pointer: str | None = None) -> Problem:
    return Problem(
        title=reason_phrase(status), status=status, detail=detail, pointer=pointer
    )


def _sentence(
    name: str, details: ErrorDetails, known: Iterable[str], *, in_query: bool
) -> str:
    match details["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            noun = "parameter" if in_query else "field"
            return f"{name!r} is not a {noun}, known are {', '.join(known) or 'none'}"
        case "model_type":
            return f"{name or 'the body'} is not a JSON object"
        case "bool_type":
            return f"{name} should be true or false"
        case "value_error":
            return f"{name} {details['msg'].removeprefix('Value error, ')}".lstrip()
        case _:
            return f"{name or 'the body'} {details['msg'].removeprefix('Input ')}"


def _is_malformed(details: ErrorDetails) -> bool:
    return details["type"].endswith(_MALFORMED_SUFFIXES)
