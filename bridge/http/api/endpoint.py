"""
The frame of the operator's API: from a request to validated models, from a model to JSON.

Every operation goes through `Api.add`, so all of them are behind the guard, validate their
input in the same way, and refuse requests in one form. A handler refuses by raising
`ApiProblem`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, get_origin

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from bridge.core.contracts.operator.operation import (
    AnyOperation,
    BodyT,
    NoBody,
    Operation,
    QueryT,
)
from bridge.core.contracts.validation import json_safe, validation_problem
from bridge.errors import PublishRefusedError, TransientError
from bridge.http.authentication import Guard, guarded
from bridge.http.request_body import read_body
from bridge.http.responses import problem

ModelT = TypeVar("ModelT", bound=BaseModel)

_BODY_MAX_BYTES: Final = 1 << 20
_RETRY_AFTER_S: Final = "2"


@dataclass(frozen=True, slots=True)
class ApiRequest(Generic[QueryT, BodyT]):
    """
    One validated request.

    Attributes:
        query: The parameters after the `?`.
        body: The JSON body; an empty model if the operation has none.
        path: The decoded parameters of the path.

    """

    query: QueryT
    body: BodyT
    path: dict[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose status is not the operation's first one."""

    status: int
    model: BaseModel


class ApiProblem(Exception):  # noqa: N818 - an answer to the client, not a fault of the bridge
    """Ends a handler with an `application/problem+json`."""

    def __init__(self, status: int, detail: str, *, pointer: str | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.pointer = pointer


class Api:
    """Adds operations to one application: those for producers behind a guard of their own."""

    def __init__(
        self, app: web.Application, guard: Guard, producer_guard: Guard | None = None
    ) -> None:
        self._app = app
        self._guard = guard
        self._producer_guard = producer_guard or guard

    def add(
        self,
        operation: Operation[QueryT, BodyT],
        handler: Callable[[ApiRequest[QueryT, BodyT]], Awaitable[BaseModel | Reply]],
    ) -> None:
        """Serve `operation` with `handler`; a bare model is sent with the first status."""
        usual_status = next(iter(operation.answers))

        async def serve(request: web.Request) -> web.StreamResponse:
            try:
                answer = await handler(await _read(operation, request))
            except ApiProblem as exc:
                return problem(exc.status, exc.detail, pointer=exc.pointer)
            except (TransientError, PublishRefusedError) as exc:
                # The broker or the store is unavailable, or refuses the change for now.
                return problem(503, str(exc), headers={"Retry-After": _RETRY_AFTER_S})
            reply = answer if isinstance(answer, Reply) else Reply(usual_status, answer)
            return _render(operation, reply)

        is_for_producers = operation.is_for_producers
        guard = self._producer_guard if is_for_producers else self._guard
        handle = guarded(guard, serve)
        self._app.router.add_route(operation.method, operation.route, handle)


def _render(operation: AnyOperation, reply: Reply) -> web.Response:
    model = operation.answers[reply.status]
    assert isinstance(reply.model, model), operation.name  # noqa: S101 - the contract
    return web.Response(
        status=reply.status,
        body=reply.model.model_dump_json(by_alias=True).encode(),
        content_type="application/json",
    )


async def _read(
    operation: Operation[QueryT, BodyT], request: web.Request
) -> ApiRequest[QueryT, BodyT]:
    fields = _query_fields(request, operation.query)
    query = _validated(operation.query, fields, in_query=True)
    if operation.body is NoBody:
        body = operation.body()
    else:
        body = _validated(operation.body, await _body_fields(request), in_query=False)
    path = dict(request.match_info)
    for name, text in path.items():
        _check_text(text, pointer=name)
    return ApiRequest(query, body, path)


def _query_fields(request: web.Request, query: type[BaseModel]) -> dict[str, object]:
    fields: dict[str, object] = {}
    lists: dict[str, list[str]] = {}
    repeatable = {
        name
        for name, field in query.model_fields.items()
        if get_origin(field.annotation) is list
    }
    for name, text in request.query.items():
        shown = json_safe(name[:100])
        if name in fields:
            detail = f"parameter {shown!r} is given more than once"
            raise ApiProblem(400, detail, pointer=shown)
        _check_text(text, pointer=shown)
        if name in repeatable:
            lists.setdefault(name, []).append(text)
        else:
            fields[name] = text
    return fields | lists


def _check_text(text: str, *, pointer: str) -> None:
    # Bytes that are not UTF-8 were decoded to lone surrogates. No name contains them, and
    # JSON cannot hold them in an answer.
    if not text.isascii() and json_safe(text) != text:
        raise ApiProblem(400, f"{pointer} is not UTF-8", pointer=pointer)


async def _body_fields(request: web.Request) -> object:
    # aiohttp reports application/octet-stream if there is no Content-Type.
    if request.content_type not in {"application/json", "application/octet-stream"}:
        raise ApiProblem(415, "the body must be application/json")
    body = await read_body(request, max_bytes=_BODY_MAX_BYTES)
    if body is None:
        raise ApiProblem(413, f"the body is over {_BODY_MAX_BYTES} bytes")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise ApiProblem(400, f"the body is not JSON: {exc.msg} at {exc.pos}") from exc


def _validated(model: type[ModelT], fields: object, *, in_query: bool) -> ModelT:
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        found = validation_problem(exc, known=model.model_fields, in_query=in_query)
        raise ApiProblem(found.status, found.detail, pointer=found.pointer) from exc
