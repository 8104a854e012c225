"""
The operator's console at `/console`: its page, sign-in, and the cookie that opens the API.

The page is public and holds nothing; all that it shows comes from `/api`, by a session
that the operator token opened. A cookie is sent by the browser whoever causes the
request, so one that comes with it is looked at more closely than one with the token.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

import orjson
import structlog
from aiohttp import web

from bridge.core.client_address import Network, arrived_by_https, client_address
from bridge.core.origins import OriginRules
from bridge.core.throttle import Throttle
from bridge.http.authentication import Handler, Keys, has_key
from bridge.http.console.sessions import Sessions
from bridge.http.problems import problem
from bridge.http.request_body import read_body

log = structlog.get_logger(__name__)

# Nothing inline, nothing from elsewhere, framed by nobody, no text turned into markup.
# Without a script the form goes nowhere, least of all with the token in an address.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    # Kept by the browser, but never shown without asking: a bridge may have been upgraded.
    "Cache-Control": "no-cache",
}
_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_PAGE: Final = "index.html"
_SHARED: Final = ("uPlot.iife.min.js", "uPlot.min.css", "base.css")

_OWN_PAGE: Final = OriginRules()  # that of the same host and port
_OWN_HEADER: Final = "X-Bridge-Console"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_BODY_MAX_BYTES: Final = 4096


@dataclass(slots=True)
class SignIn:
    """
    Sign-in with the operator token, and the guard that takes the token or a session.

    Attributes:
        keys: What opens a session.
        trusted_proxies: Networks whose `X-Forwarded-*` headers are believed.
        sessions: The open ones.
        throttle: Who has tried wrong tokens.
        clock: For the throttle, in seconds.

    """

    keys: Keys
    trusted_proxies: Sequence[Network]
    sessions: Sessions = field(default_factory=Sessions)
    throttle: Throttle = field(default_factory=Throttle)
    clock: Callable[[], float] = time.monotonic

    def apply(self, key: str | None, trusted_proxies: Sequence[Network]) -> None:
        """Use this key and these proxies from now on; a changed key ends all sessions."""
        self.trusted_proxies = trusted_proxies
        if self.keys.replace((key,)):
            self.sessions.close_all()

    # --- the guard

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer for a request with neither key nor session, else ``None``."""
        session_id = request.cookies.get(_cookie_name(request))
        if session_id is None or has_key(request):
            return self.keys.refusal(request)
        if not self.sessions.use(session_id):
            return problem(401, "the session has ended: sign in again")
        return _refusal_of_strangers(request)

    # --- the door

    async def look(self, request: web.Request) -> web.Response:
        """Say whether the request has a session: no error, for a page that begins."""
        session_id = request.cookies.get(_cookie_name(request))
        is_signed_in = session_id is not None and self.sessions.use(session_id)
        return _json({"signed_in": is_signed_in})

    async def sign_in(self, request: web.Request) -> web.Response:
        """Open a session for who has the token: 204 and its cookie."""
        address = client_address(
            request.remote,
            request.headers.get("X-Forwarded-For"),
            self.trusted_proxies,
        )
        refusal = _refusal_of_strangers(request) or self._refusal_of_haste(address)
        if refusal is not None:
            return refusal
        token = await _token_in(request)
        # Once more: others may have tried while this body was on its way.
        refusal = self._refusal_of_haste(address) or self._refusal_of(token, address)
        if refusal is not None:
            return refusal
        self.throttle.forget(address)
        log.info("console.signed_in", address=address)
        return self._signed_in(request)

    async def sign_out(self, request: web.Request) -> web.Response:
        """End the session of the request, whether there is one or not: 204."""
        refusal = _refusal_of_strangers(request)
        if refusal is not None:
            return refusal
        name = _cookie_name(request)
        self.sessions.close(request.cookies.get(name, ""))
        response = web.Response(status=204)
        response.del_cookie(name, path="/", samesite="Strict")
        return response

    def _refusal_of_haste(self, address: str) -> web.Response | None:
        wait_s = math.ceil(self.throttle.wait_s(address, self.clock()))
        if not wait_s:
            return None
        return problem(
            429,
            f"too many wrong tokens: try again in {wait_s} s",
            headers={"Retry-After": str(wait_s)},
        )

    def _refusal_of(self, token: str | None, address: str) -> web.Response | None:
        if not self.keys.is_set:
            return self.keys.closed()
        if token is None:
            detail = "token is missing, expected the operator token in JSON"
            return problem(422, detail, pointer="/token")
        if self.keys.accepts(token):
            return None
        self.throttle.note_failure(address, self.clock())
        log.warning("console.token_refused", address=address)
        return problem(401, "the token is wrong", pointer="/token")

    def _signed_in(self, request: web.Request) -> web.Response:
        response = web.Response(status=204)
        response.set_cookie(
            _cookie_name(request),
            self.sessions.open(),
            max_age=int(self.sessions.life_s),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=arrived_by_https(
                request.remote,
                request.headers.get("X-Forwarded-Proto"),
                self.trusted_proxies,
            ),
        )
        return response


def add_console_routes(app: web.Application, sign_in: SignIn) -> None:
    """Serve the page at `/console`, what it is made of below it, and its sessions."""
    for name, asset in _assets().items():
        path = "/console" if name == _PAGE else f"/console/{name}"
        app.router.add_get(path, asset)

    async def to_the_page(_request: web.Request) -> web.Response:
        # Relative, as all addresses in the page: a proxy may have put a path before it.
        return web.Response(status=308, headers={"Location": "../console"})

    async def to_the_console(_request: web.Request) -> web.Response:
        # For now: browsers keep 308, and a port may become that of another program.
        return web.Response(status=307, headers={"Location": "console"})

    app.router.add_get("/", to_the_console)
    app.router.add_get("/console/", to_the_page)
    app.router.add_get("/console/session", sign_in.look)
    app.router.add_post("/console/session", sign_in.sign_in)
    app.router.add_delete("/console/session", sign_in.sign_out)


def _refusal_of_strangers(request: web.Request) -> web.Response | None:
    """
    Refuse what a page of another origin can cause: browsers send cookies along with it.

    SameSite=Strict keeps other sites out, but not other ports and names of the same
    site; the header, which needs a preflight that nobody answers, and Origin do.
    """
    is_own = _OWN_PAGE.allows(
        request.headers.get("Origin"),
        host=request.headers.get("Host"),
        fetch_site=request.headers.get("Sec-Fetch-Site"),
    )
    if not is_own:
        return problem(403, "this comes from a page that is not the console")
    if request.method in _SAFE_METHODS or request.headers.get(_OWN_HEADER) == "1":
        return None
    return problem(403, f"with a session, changes need the header {_OWN_HEADER}: 1")


def _cookie_name(request: web.Request) -> str:
    """Name the cookie after the port: browsers keep one jar for all ports of a host."""
    _, _, port = request.headers.get("Host", "").rpartition(":")
    return (
        f"bridge_console_{port}"
        if port.isascii() and port.isdigit()
        else "bridge_console"
    )


async def _token_in(request: web.Request) -> str | None:
    body = await read_body(request, max_bytes=_BODY_MAX_BYTES)
    try:
        fields = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        return None
    token = fields.get("token") if isinstance(fields, dict) else None
    return token if isinstance(token, str) and token else None


def _assets() -> dict[str, Handler]:
    """Return a handler for each file of the page; they are read once."""
    package = resources.files("bridge.http")
    own = package / "console" / "assets"
    files = [*own.iterdir(), *(package / "assets" / name for name in _SHARED)]
    return {
        file.name: _asset(file.read_bytes(), _TYPES[suffix])
        for file in files
        if (suffix := f".{file.name.rpartition('.')[2]}") in _TYPES
    }


def _asset(body: bytes, content_type: str) -> Handler:
    tag = hashlib.sha256(body).hexdigest()[:32]
    headers = _HEADERS | {"ETag": f'"{tag}"'}

    async def serve(request: web.Request) -> web.StreamResponse:
        if any(known.value == tag for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=body, content_type=content_type, charset="utf-8", headers=headers
        )

    return serve


def _json(body: object) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
