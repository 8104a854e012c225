"""
The description of an operation, used by the HTTP endpoints and by the OpenAPI document.

The endpoints (http/api/endpoint.py) validate requests and render answers by it, and the document
in `schemas/` is generated from it. So the document cannot differ from the behavior.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypeVar

from bridge.core.contracts.base import Absent, Contract

ItemT = TypeVar("ItemT")

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200
# All parameters together, percent-encoded, must fit into the request line.
CURSOR_MAX: Final = 500
QUERY_TEXT_MAX: Final = 255


# --- query parameters, which arrive as text -----------------------------------------------


def _whole_number(value: object) -> object:
    # Pydantic would also accept " 5", "5.0" and "5_0", which the schema does not allow.
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
    """The query parameters of an operation; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Body(Contract):
    """The JSON body of an operation; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(Query):
    """The page of a list."""

    limit: QueryNumber = Field(
        PAGE_DEFAULT, ge=1, le=PAGE_MAX, description="The largest number of items."
    )
    cursor: str | Absent = Field(
        None,
        max_length=CURSOR_MAX,
        pattern="^[A-Za-z0-9_-]*$",
        description="`next` of the previous page; absent for the first page.",
    )


class Page(Contract, Generic[ItemT]):
    """A part of a list."""

    items: list[ItemT] = Field(description="The items of this page, in order.")
    next: str | None = Field(
        description="The `cursor` of the next page, if there is one."
    )


# --- operations ---------------------------------------------------------------------------

Method = Literal["GET", "POST", "DELETE", "PUT"]


class NoQuery(Query):
    """No parameters."""


class NoBody(Body):
    """No body."""


QueryT = TypeVar("QueryT", bound=BaseModel, default=NoQuery)
BodyT = TypeVar("BodyT", bound=BaseModel, default=NoBody)


@dataclass(frozen=True, slots=True)
class Operation(Generic[QueryT, BodyT]):
    """
    One operation.

    Attributes:
        method: The HTTP method.
        path: The path, with parameters in braces, as `/api/dead/{id}`; each is one segment.
        name: The `operationId`.
        summary: One line for people.
        answers: The models of JSON answers, by status; the first one is the usual.
        query: The model of the query parameters.
        body: The model of the JSON body; `NoBody` if there is none.
        path_parameters: JSON Schema, with description, of each name in braces.
        problems: Statuses of problem+json answers, besides those of all operations.
        is_free: Whether no key is required.
        is_for_producers: Whether BRIDGE_API_KEY is sufficient.
        media_type: The media type of the answers.

    """

    method: Method
    path: str
    name: str
    summary: str
    answers: Mapping[int, type[BaseModel]]
    # mypy cannot know that an omitted argument selects the default of its type variable.
    query: type[QueryT] = NoQuery  # type: ignore[assignment]
    body: type[BodyT] = NoBody  # type: ignore[assignment]
    path_parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    is_free: bool = False
    is_for_producers: bool = False
    media_type: str = "application/json"

    @property
    def route(self) -> str:
        """The path as a route, whose parameters exclude words that are other paths."""

        def with_pattern(found: re.Match[str]) -> str:
            words = self.path_parameters[found[1]].get("not", {}).get("enum", ())
            excluded = f"(?!(?:{'|'.join(words)})$)" if words else ""
            # The usual pattern excludes braces, which a name may contain. This one must not
            # contain any: the router ends a parameter there.
            return f"{{{found[1]}:{excluded}[^/]+}}"

        return re.sub(r"\{(\w+)\}", with_pattern, self.path)

    @property
    def group(self) -> str:
        """The part of the path that names the group: `dead`, `users`, `health`."""
        return self.path.removeprefix("/api").split("/")[1]


AnyOperation = Operation[Any, Any]
