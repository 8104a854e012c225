"""Errors over HTTP, as `application/problem+json` (RFC 9457)."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import orjson
import structlog
from aiohttp import ClientConnectionResetError, web

log = structlog.get_logger(__name__)

# What an application serves, for those who come to the wrong one of the two doors.
SERVES: Final = web.AppKey("serves", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def problem(
    status: int,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    pointer: str | None = None,
) -> web.Response:
    """
    Return the answer that says what was wrong.

    Args:
        status: The HTTP status.
        detail: A sentence for a person.
        headers: More headers, such as `Retry-After`.
        pointer: What it is about: a JSON Pointer into the body, or a parameter's name.

    """
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
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
    """Turn every error answer into a problem; hide what only the log may know."""
    try:
        return await handler(request)
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        if exc.status == HTTPStatus.NOT_FOUND and SERVES in request.app:
            return problem(exc.status, f"nothing is here; {request.app[SERVES]}")
        allow = exc.headers.get("Allow")
        return problem(
            exc.status, exc.reason, headers={"Allow": allow} if allow else None
        )
    except ClientConnectionResetError:
        # Who asked is gone, as at any reload of a page; nobody reads this.
        return problem(400, "the connection is closed")
    except Exception:
        log.exception("web.request_failed", path=request.path)
        return problem(500, "a fault of the bridge; its log says more")


async def harden(_request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers that every answer of ours carries (`on_response_prepare`)."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "bridge"
