"""From the body of `POST /api/publish` to a request, or the problem with it."""

from http import HTTPStatus
from typing import Final, Literal

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bridge.core.contracts.messages import Problem, PublishRequest

# What a program would have to be changed for, besides JSON that is none; everything else
# is about the values and answered with 422.
_MALFORMED_SUFFIXES: Final = ("extra_forbidden", "_type", "_parsing", "_unicode")


def parse_publish_request(body: bytes) -> PublishRequest | Problem:
    """Read the body of `POST /api/publish`; a problem says 400 or 422."""
    try:
        # Not pydantic's own reader, which takes NaN.
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        return _problem(400, f"the body is not JSON: {exc.msg} at {exc.pos}")
    try:
        return PublishRequest.model_validate(fields)
    except ValidationError as exc:
        pointer, text = first_problem(exc)
        return _problem(problem_status(exc), text, pointer=pointer)


def _problem(status: int, detail: str, *, pointer: str | None = None) -> Problem:
    return Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, pointer=pointer
    )


def problem_status(error: ValidationError) -> Literal[400, 422]:
    """
    Tell a body of the wrong form (400) from one with values that cannot be used (422).

    An unknown field or a wrong type is 400, also when other things are wrong besides.
    """
    return 400 if any(_is_malformed(details) for details in _errors(error)) else 422


def first_problem(error: ValidationError) -> tuple[str, str]:
    """
    Return what to tell the sender: the fault that `problem_status` speaks of.

    Returns:
        A JSON Pointer (RFC 6901), empty for the body as a whole, and a sentence that
        begins with the field's name and holds no value that was sent.

    """
    details = min(_errors(error), key=lambda details: not _is_malformed(details))
    # The part behind the name is pydantic's, for the members of a union.
    name = str(details["loc"][0])[:100] if details["loc"] else ""
    escaped = name.replace("~", "~0").replace("/", "~1")
    pointer = f"/{escaped}" if details["loc"] else ""
    return pointer, _sentence(name, details)


def _sentence(name: str, details: ErrorDetails) -> str:
    match details["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            return f"{name!r} is not a field, known are {', '.join(PublishRequest.model_fields)}"
        case "model_type":
            return "the body is not a JSON object"
        case "value_error":
            return f"{name} {details['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{name} {details['msg'].removeprefix('Input ')}"


def _is_malformed(details: ErrorDetails) -> bool:
    return details["type"].endswith(_MALFORMED_SUFFIXES)


def _errors(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False, include_context=False)
