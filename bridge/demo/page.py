"""
The demo page on the public door: two users, a form that publishes, a way to break things.

Mounted by `bridge demo` alone. What it hands out (tokens for anybody, a publish without
a key) would be a hole anywhere else, so it answers only to its own pages, by a loopback
name: another site cannot send requests here, nor rebind a name of its own to this host.
"""

import asyncio
from collections.abc import Mapping
from importlib import resources
from typing import Final, Protocol

import orjson
from aiohttp import web
from yarl import URL

from bridge.core.message import user_problem
from bridge.core.origins import OriginRules
from bridge.http.authentication import Handler
from bridge.http.problems import problem
from bridge.settings.checks import is_loopback

_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_PAGE: Final = "index.html"
# Nothing inline, nothing from elsewhere, framed by nobody but ourselves.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; frame-src 'self'; frame-ancestors 'self'; "
        "base-uri 'none'; form-action 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_OWN_PAGES: Final = OriginRules()  # those of the same host and port
_BODY_WITHIN_S: Final = 10.0


class Demo(Protocol):
    """What the page may ask of the demo."""

    def facts(self) -> Mapping[str, object]:
        """Return what the page shows: shell lines, readiness."""

    def token(self, user: str) -> Mapping[str, object]:
        """Return a token for `user`, and how long it lives."""

    def cut(self, sid: str) -> bool:
        """Cut the connection of the window `sid` as a bad network would; false if it is gone."""

    async def publish(self, request: web.Request) -> web.Response:
        """Answer as `POST /api/publish` does."""


def add_demo_routes(app: web.Application, demo: Demo) -> None:
    """Serve the page at `/`, what it is made of below `/demo/`, and what it asks for."""
    for name, asset in _assets().items():
        app.router.add_get(f"/demo/{name}", asset)
        if name == _PAGE:
            app.router.add_get("/", asset)

    async def facts(_request: web.Request) -> web.Response:
        return _json(demo.facts())

    async def token(request: web.Request) -> web.Response:
        user = await _field(request, "user")
        fault = user_problem(user) if user is not None else "is missing"
        if user is None or fault:
            return problem(422, f"user {fault}", pointer="/user")
        return _json(demo.token(user))

    async def cut(request: web.Request) -> web.Response:
        sid = await _field(request, "sid")
        if sid is None or not demo.cut(sid):
            return problem(404, "there is no such window", pointer="/sid")
        return _json({})

    app.router.add_get("/demo/facts", _for_own_pages(facts))
    app.router.add_post("/demo/token", _for_own_pages(token))
    app.router.add_post("/demo/cut", _for_own_pages(cut))
    app.router.add_post("/demo/publish", _for_own_pages(demo.publish))


def _assets() -> dict[str, Handler]:
    """Return a handler for each file of the page; they are read once."""
    own = resources.files("bridge.demo") / "assets"
    shared = resources.files("bridge.http") / "assets"
    files = [*own.iterdir(), shared / "base.css"]
    return {
        entry.name: _asset(entry.read_bytes(), _TYPES[suffix])
        for entry in files
        if (suffix := f".{entry.name.rpartition('.')[2]}") in _TYPES
    }


def _asset(body: bytes, content_type: str) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        if not _is_called_by_loopback_name(request):
            return _refused()
        return web.Response(
            body=body, content_type=content_type, charset="utf-8", headers=_HEADERS
        )

    return serve


def _for_own_pages(handler: Handler) -> Handler:
    """Refuse requests that a page of another origin can cause."""

    async def guard(request: web.Request) -> web.StreamResponse:
        is_own = _OWN_PAGES.allows(
            request.headers.get("Origin"),
            host=request.headers.get("Host"),
            fetch_site=request.headers.get("Sec-Fetch-Site"),
        )
        if not is_own or not _is_called_by_loopback_name(request):
            return _refused()
        # A form of another site can send plain text, but JSON only after a preflight
        # that nobody answers.
        if request.method == "POST" and request.content_type != "application/json":
            return problem(415, "the body must be application/json")
        try:
            async with asyncio.timeout(_BODY_WITHIN_S):
                await request.read()  # kept by the request for the handler
        except TimeoutError:
            return problem(408, "the body did not arrive in time")
        return await handler(request)

    return guard


def _is_called_by_loopback_name(request: web.Request) -> bool:
    try:
        host = URL(f"http://{request.headers.get('Host', '')}").host
    except ValueError:
        return False
    return is_loopback(host or "")


def _refused() -> web.Response:
    return problem(403, "the demo answers to its own page on this machine alone")


async def _field(request: web.Request, name: str) -> str | None:
    """Return a text of the JSON body; ``None`` if there is none."""
    try:
        fields = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        return None
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if isinstance(value, str) else None


def _json(body: Mapping[str, object]) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
