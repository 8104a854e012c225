"""The files of a page: read once, and served from memory."""

import hashlib
from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable
from typing import Final

from aiohttp import web

from bridge.http.authentication import Handler

_TYPES: Final = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


def read_page_files(
    files: Iterable[Traversable], *, headers: Mapping[str, str]
) -> dict[str, Handler]:
    """Return a handler for each file by its name; files of other types are left out."""
    return {
        file.name: _handler(file.read_bytes(), _TYPES[suffix], headers)
        for file in files
        if (suffix := file.name.rpartition(".")[2]) in _TYPES
    }


def _handler(body: bytes, content_type: str, headers: Mapping[str, str]) -> Handler:
    tag = hashlib.sha256(body).hexdigest()[:32]
    headers = {**headers, "ETag": f'"{tag}"'}

    async def serve(request: web.Request) -> web.StreamResponse:
        if any(known.value == tag for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=body, content_type=content_type, charset="utf-8", headers=headers
        )

    return serve
