"""
What an operation of the operator's API is: one description for the door and for OpenAPI.

The door (web/api/frame.py) reads requests by it and writes answers by it; the document in
`schemas/` is made from it. So they cannot say different things.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from bridge.core.contracts.base import Contract

ItemT = TypeVar("ItemT")
QueryT = TypeVar("QueryT", bound=BaseModel)
BodyT = TypeVar("BodyT", bound=BaseModel)

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200
# All parameters together must fit into one line of a request, percent-encoded.
CURSOR_MAX: Final = 500
QUERY_TEXT_MAX: Final = 255


# --- what stands in a query: text, to begin with ----------------------------------------


def _whole_number(value: object) -> object:
    # Pydantic would take " 5", "5.0" and "5_0" too; the schema says what is said here.
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= 15):
            message = "should be a whole number in digits"
            raise ValueError(message)
        return int(value)
    return value


def _flag(value: object) -> object:
    if isinstance(value, str):
        if value not in {"true", "false"}:
            message = "should be true or false"
            raise ValueError(message)
        return value == "true"
    return value


def _seconds(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            message = "should be seconds since 1970-01-01 UTC"
            raise ValueError(message) from None
    return value


QueryNumber = Annotated[int, BeforeValidator(_whole_number)]
QueryFlag = Annotated[bool, BeforeValidator(_flag)]
QueryTime = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=0, le=1e12, allow_inf_nan=False),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1e12}),
]


class Query(BaseModel):
    """The parameters behind the `?` of an operation; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Body(Contract):
    """The JSON body of an operation; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(Query):
    """Which part of a list is wanted."""

    limit: QueryNumber = Field(
        PAGE_DEFAULT, ge=1, le=PAGE_MAX, description="How many items at most."
    )
    cursor: str | SkipJsonSchema[None] = Field(
        None,
        max_length=CURSOR_MAX,
        pattern="^[A-Za-z0-9_-]*$",
        description="`next` of the page before; absent for the first page.",
    )


class Page(Contract, Generic[ItemT]):
    """A part of a list."""

    items: list[ItemT] = Field(description="What is on this page, in order.")
    next: str | None = Field(
        description="The `cursor` of the next page; null if there is none."
    )


# --- operations ---------------------------------------------------------------------------

Method = Literal["GET", "POST", "DELETE", "PUT"]


@dataclass(frozen=True, slots=True)
class Operation(Generic[QueryT, BodyT]):
    """
    One operation.

    Attributes:
        method: Of HTTP.
        path: With parameters in braces, as `/api/dead/{id}`; each stands for one segment.
        name: The `operationId`; also the name of its test.
        summary: One line for a person.
        answers: Model of the JSON by status.
        query: Model of the parameters behind the `?`.
        body: Model of the request's JSON; `NoBody` if there is none.
        path_parameters: JSON Schema, with description, of each name in braces.
        problems: Which statuses it answers with problem+json, besides those that all
            operations share.
        is_free: Whether everybody may ask, without a key.
        media_type: Of its answers.

    """

    method: Method
    path: str
    name: str
    summary: str
    answers: Mapping[int, type[BaseModel]]
    query: type[QueryT]
    body: type[BodyT]
    path_parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    is_free: bool = False
    media_type: str = "application/json"

    @property
    def route(self) -> str:
        """The path with what its parameters may not be: words that are other paths."""

        def with_exceptions(found: re.Match[str]) -> str:
            words = self.path_parameters[found[1]].get("not", {}).get("enum", ())
            # No braces inside: the router ends a parameter at the first one.
            return (
                f"{{{found[1]}:(?!(?:{'|'.join(words)})$)[^/]+}}" if words else found[0]
            )

        return re.sub(r"\{(\w+)\}", with_exceptions, self.path)

    @property
    def group(self) -> str:
        """The part of the path that names what it is about: `dead`, `users`, `health`."""
        return self.path.removeprefix("/api").split("/")[1]


class NoQuery(Query):
    """No parameters."""


class NoBody(Body):
    """No body."""


AnyOperation = Operation[Any, Any]
