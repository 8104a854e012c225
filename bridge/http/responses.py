"""JSON answers, and errors as `application/problem+json` (RFC 9457)."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import orjson
import structlog
from aiohttp import ClientConnectionResetError, web

from bridge.core.reason_phrase import reason_phrase

log = structlog.get_logger(__name__)

# What an application serves, for answers to requests that were meant for the other port.
SERVES: Final = web.AppKey("serves", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(body: object, *, status: int = 200) -> web.Response:
    """Return `body` as JSON."""
    return web.Response(
        status=status, body=orjson.dumps(body), content_type="application/json"
    )


def problem(
    status: int,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    pointer: str | None = None,
) -> web.Response:
    """
    Return an answer that describes an error.

    Args:
        status: The HTTP status.
        detail: A sentence for people.
        headers: Additional headers, such as `Retry-After`.
        pointer: The location of the error: a JSON Pointer into the body, or the name of
            a parameter.

    """
    body = {
        "type": "about:blank",
        "title": reason_phrase(status),
        "status": status,
        "detail": detail,
    }
    if pointer is not None:
        body["pointer"] = pointer
    return web.Response(
        status=status,
        body=orjson.dumps(body),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def answer_with_problems(
    request: web.Request, handler: Handler
) -> web.StreamResponse:
    """Turn every error into a problem; the details of a bug appear only in the log."""
    try:
        return await handler(request)
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        if exc.status == HTTPStatus.NOT_FOUND and SERVES in request.app:
            return problem(exc.status, f"not found; {request.app[SERVES]}")
        allow = exc.headers.get("Allow")
        return problem(
            exc.status, exc.reason, headers={"Allow": allow} if allow else None
        )
    except ClientConnectionResetError:
        # The client closed the connection, as browsers do when a page is reloaded. The
        # answer cannot be delivered.
        return problem(400, "the connection is closed")
    except Exception:
        log.exception("http.request_failed", path=request.path)
        return problem(500, "internal error; the log of the bridge has the details")


async def harden(_request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers of every answer (`on_response_prepare`)."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "bridge"
