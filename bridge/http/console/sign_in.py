"""
The operator's console at `/console`: its page, the sign-in, and the session cookie.

The page is public and holds no data. Everything that it shows comes from `/api`, within a
session that was opened with the operator token. A browser sends the cookie with every request
to the bridge, whichever page causes it, so a request with a cookie has to pass more checks
than one with the token.
"""

from dataclasses import dataclass, field
from importlib import resources
from typing import Final

import structlog
from aiohttp import web

from bridge.core.origins import OriginRules
from bridge.http.authentication import Keys, has_key
from bridge.http.console.sessions import Sessions
from bridge.http.page_files import read_page_files
from bridge.http.request_body import read_body, text_field
from bridge.http.responses import json_response, problem
from bridge.trusted_proxies import TrustedProxies

log = structlog.get_logger(__name__)

# No inline scripts or styles, nothing from other hosts, no frames, no text as markup. Without
# its script the form cannot be submitted, so the token never becomes part of a URL.
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
    # Browsers revalidate cached files, because the bridge may have been upgraded.
    "Cache-Control": "no-cache",
}
_PAGE: Final = "index.html"
_SHARED: Final = ("uPlot.iife.min.js", "uPlot.min.css", "base.css")

_OWN_PAGE: Final = OriginRules()  # allows only the same host and port
_OWN_HEADER: Final = "X-Bridge-Console"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_BODY_MAX_BYTES: Final = 4096


@dataclass(slots=True)
class SignIn:
    """
    The sign-in with the operator token, and the guard that accepts a token or a session.

    Attributes:
        keys: The operator token.
        proxies: Find the address and scheme of a browser.
        sessions: The open sessions.

    """

    keys: Keys
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    sessions: Sessions = field(default_factory=Sessions)

    def apply(self, key: str | None) -> None:
        """Use this key from now on; a changed key ends all sessions."""
        if self.keys.replace((key,)):
            self.sessions.close_all()

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request without a valid key or session, else ``None``."""
        session_id = request.cookies.get(_cookie_name(request))
        if session_id is None or has_key(request):
            return self.keys.refusal(request)
        # First: what another page causes is no use of the session.
        refusal = _refusal_of_other_pages(request)
        if refusal is None and not self.sessions.use(session_id):
            return problem(401, "the session has ended: sign in again")
        return refusal

    # --- the endpoints

    async def show(self, request: web.Request) -> web.Response:
        """Answer whether the request has a session, which is no error if it has none."""
        session_id = request.cookies.get(_cookie_name(request))
        is_signed_in = (
            session_id is not None
            and _refusal_of_other_pages(request) is None
            and self.sessions.use(session_id)
        )
        return json_response({"signed_in": is_signed_in})

    async def sign_in(self, request: web.Request) -> web.Response:
        """Open a session if the body has the token: 204 with the cookie."""
        refusal = _refusal_of_other_pages(request) or self.keys.pause(request)
        if refusal is not None:
            return refusal
        body = await read_body(request, max_bytes=_BODY_MAX_BYTES)
        refusal = self._refusal_of_token(request, text_field(body, "token"))
        if refusal is not None:
            return refusal
        address = self.proxies.client_address(request.remote, request.headers)
        log.info("console.signed_in", address=address)
        return self._signed_in(request)

    async def sign_out(self, request: web.Request) -> web.Response:
        """End the session of the request, if it has one: 204."""
        refusal = _refusal_of_other_pages(request)
        if refusal is not None:
            return refusal
        name = _cookie_name(request)
        self.sessions.close(request.cookies.get(name, ""))
        response = web.Response(status=204)
        response.del_cookie(name, path="/", samesite="Strict")
        return response

    def _refusal_of_token(
        self, request: web.Request, token: str | None
    ) -> web.Response | None:
        if not self.keys.is_set:
            return self.keys.closed()
        if not token:
            detail = "token is missing, expected the operator token in JSON"
            return problem(422, detail, pointer="/token")
        given = token.encode(errors="replace")
        # Checked again: other requests may have failed while the body was read.
        return self.keys.pause(request, given) or self.keys.refusal_of(
            given, request, name="token", pointer="/token"
        )

    def _signed_in(self, request: web.Request) -> web.Response:
        response = web.Response(status=204)
        response.set_cookie(
            _cookie_name(request),
            self.sessions.open(),
            max_age=int(self.sessions.life_s),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=self.proxies.arrived_by_https(request.remote, request.headers),
        )
        return response


def add_console_routes(app: web.Application, sign_in: SignIn) -> None:
    """Serve the page at `/console`, with its files and its sessions below that path."""
    package = resources.files("bridge.http")
    own = package / "console" / "assets"
    files = [*own.iterdir(), *(package / "assets" / name for name in _SHARED)]
    for name, handler in read_page_files(files, headers=_HEADERS).items():
        path = "/console" if name == _PAGE else f"/console/{name}"
        app.router.add_get(path, handler)

    async def redirect_to_page(_request: web.Request) -> web.Response:
        # Relative, as all URLs of the page, because a proxy may add a path prefix.
        return web.Response(status=308, headers={"Location": "../console"})

    async def redirect_to_console(_request: web.Request) -> web.Response:
        # Not permanent: browsers cache a 308, and another program may use the port later.
        return web.Response(status=307, headers={"Location": "console"})

    app.router.add_get("/", redirect_to_console)
    app.router.add_get("/console/", redirect_to_page)
    app.router.add_get("/console/session", sign_in.show)
    app.router.add_post("/console/session", sign_in.sign_in)
    app.router.add_delete("/console/session", sign_in.sign_out)


def _refusal_of_other_pages(request: web.Request) -> web.Response | None:
    """
    Refuse requests that a page of another origin can cause with the operator's cookie.

    SameSite=Strict excludes other sites, but not other ports and host names of the same
    site. The check of Origin does, and so does the header: it makes browsers send a
    preflight request, which the bridge does not allow.
    """
    is_own = _OWN_PAGE.allows(
        request.headers.get("Origin"),
        host=request.headers.get("Host"),
        fetch_site=request.headers.get("Sec-Fetch-Site"),
    )
    if not is_own:
        return problem(403, "this request comes from a page that is not the console")
    if request.method in _SAFE_METHODS or request.headers.get(_OWN_HEADER) == "1":
        return None
    return problem(403, f"with a session, changes need the header {_OWN_HEADER}: 1")


def _cookie_name(request: web.Request) -> str:
    """Return the cookie's name, with the port: browsers share cookies between ports."""
    _, _, port = request.headers.get("Host", "").rpartition(":")
    return (
        f"bridge_console_{port}"
        if port.isascii() and port.isdigit()
        else "bridge_console"
    )
