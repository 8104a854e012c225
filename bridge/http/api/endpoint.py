"""
The frame of the operator's API: from a request to checked models, from a model to JSON.

Every operation goes through here, so all of them are behind the guard, check what they
are asked in the same way, and refuse in one form. A group adds its handlers with
`Api.add`; what they may raise to refuse is `ApiProblem`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bridge.core.contracts.operator.operation import AnyOperation, NoBody, Operation
from bridge.errors import PublishRefusedError, TransientError
from bridge.http.authentication import Handler
from bridge.http.problems import problem
from bridge.http.request_body import read_body

QueryT = TypeVar("QueryT", bound=BaseModel)
BodyT = TypeVar("BodyT", bound=BaseModel)

Guard = Callable[[Handler], Handler]

_BODY_MAX_BYTES: Final = 1 << 20
_RETRY_AFTER_S: Final = "2"
# What a program would have to be changed for; the rest is about values (RFC 9110 15.5.21).
_MALFORMED_SUFFIXES: Final = ("extra_forbidden", "_type", "_unicode")


@dataclass(frozen=True, slots=True)
class ApiRequest(Generic[QueryT, BodyT]):
    """
    One request, checked.

    Attributes:
        query: The parameters behind the `?`.
        body: The JSON body; an empty model if the operation has none.
        path: The parameters of the path, decoded.
        request: What aiohttp knows of it.

    """

    query: QueryT
    body: BodyT
    path: dict[str, str]
    request: web.Request


@dataclass(frozen=True, slots=True)
class Reply:
    """A model with a status other than the operation's first."""

    status: int
    model: BaseModel


class ApiProblem(Exception):  # noqa: N818 - it is an answer, not a fault of ours
    """Ends a handler with an `application/problem+json`."""

    def __init__(self, status: int, detail: str, *, pointer: str | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.pointer = pointer


class Api:
    """Adds operations to one application, each behind the same guard."""

    def __init__(self, app: web.Application, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    def add(
        self,
        operation: Operation[QueryT, BodyT],
        handler: Callable[[ApiRequest[QueryT, BodyT]], Awaitable[BaseModel | Reply]],
    ) -> None:
        """Serve `operation` by `handler`; its answer has the first status by default."""
        usual_status = next(iter(operation.answers))

        async def serve(request: web.Request) -> web.StreamResponse:
            try:
                asked = await _read(operation, request)
                answer = await handler(asked)
            except ApiProblem as exc:
                return problem(exc.status, exc.detail, pointer=exc.pointer)
            except (TransientError, PublishRefusedError) as exc:
                # Broker or store are away, or will not take it now.
                return problem(503, str(exc), headers={"Retry-After": _RETRY_AFTER_S})
            reply = answer if isinstance(answer, Reply) else Reply(usual_status, answer)
            return _render(operation, reply)

        self._app.router.add_route(
            operation.method, operation.route, self._guard(serve)
        )


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
    query = _checked(operation.query, _query_fields(request), where="parameter")
    if operation.body is NoBody:
        body = operation.body()
    else:
        body = _checked(operation.body, await _body_fields(request), where="body")
    path = dict(request.match_info)
    for name, text in path.items():
        _check_text(text, pointer=name)
    return ApiRequest(query, body, path, request)


def _query_fields(request: web.Request) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, text in request.query.items():
        if name in fields:
            detail = f"parameter {name[:100]!r} is there more than once"
            raise ApiProblem(400, _shown(detail), pointer=_shown(name[:100]))
        _check_text(text, pointer=_shown(name[:100]))
        fields[name] = text
    return fields


def _check_text(text: str, *, pointer: str) -> None:
    # What was not UTF-8 once decoded: it names nothing, and JSON cannot say it.
    if not text.isascii() and _shown(text) != text:
        raise ApiProblem(400, f"{pointer} is not UTF-8", pointer=pointer)


def _shown(text: str) -> str:
    """Make any text one that JSON can hold."""
    return text.encode(errors="backslashreplace").decode()


async def _body_fields(request: web.Request) -> object:
    if request.content_type not in {"application/json", "application/octet-stream"}:
        # The second is aiohttp's word for none.
        raise ApiProblem(415, "the body must be application/json")
    body = await read_body(request, max_bytes=_BODY_MAX_BYTES)
    if body is None:
        raise ApiProblem(413, f"the body is over {_BODY_MAX_BYTES} bytes")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise ApiProblem(400, f"the body is not JSON: {exc.msg} at {exc.pos}") from exc


ModelT = TypeVar("ModelT", bound=BaseModel)


def _checked(model: type[ModelT], fields: object, *, where: str) -> ModelT:
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        errors = exc.errors(
            include_url=False, include_input=False, include_context=False
        )
    details = min(errors, key=lambda one: not _is_malformed(one))
    status = 400 if _is_malformed(details) else 422
    if where == "parameter":
        pointer = str(details["loc"][0])[:100] if details["loc"] else ""
    else:
        parts = (str(part)[:100] for part in details["loc"])
        pointer = "".join(
            f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts
        )
    sentence = _sentence(details, where, known=model.model_fields)
    raise ApiProblem(status, sentence, pointer=_shown(pointer))


def _sentence(details: ErrorDetails, where: str, *, known: Any) -> str:  # noqa: ANN401 - names of any fields
    name = _shown(".".join(str(part)[:100] for part in details["loc"]))
    match details["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            some = ", ".join(known) or "none"
            return f"{name!r} is not a {where if where == 'parameter' else 'field'}, known are {some}"
        case "value_error":
            text = details["msg"].removeprefix("Value error, ")
            return f"{name} {text}" if name else text
        case _:
            return f"{name or 'the body'} {details['msg'].removeprefix('Input ')}"


def _is_malformed(details: ErrorDetails) -> bool:
    return details["type"].endswith(_MALFORMED_SUFFIXES)
