"""Reads a body with a size limit and a deadline, which aiohttp lacks per handler."""

import asyncio
from typing import Final

import orjson
from aiohttp import web

_TIMEOUT_S: Final = 30.0


async def read_body(request: web.Request, *, max_bytes: int) -> bytes | None:
    """
    Read the whole body; ``None`` if it is larger than `max_bytes`.

    Raises:
        web.HTTPRequestTimeout: If it did not arrive within half a minute.
        web.HTTPBadRequest: If it is incomplete or cannot be decompressed.

    Cancellation:
        Safe; the rest is not read.

    """
    if not request.can_read_body:  # it is empty, or was read before
        return await request.read()
    body = bytearray()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    return None
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except (ConnectionError, web.RequestPayloadError):
        raise web.HTTPBadRequest(reason="the body cannot be read") from None
    return bytes(body)


def text_field(body: bytes | None, name: str) -> str | None:
    """Return a string of a JSON object; ``None`` if `body` holds none with this name."""
    try:
        fields = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        return None
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if isinstance(value, str) else None
