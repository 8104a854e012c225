"""
The demo page at `/` of the public port, and the requests it sends to the demo.

Only `bridge demo` adds these routes. They issue tokens without authentication and publish
without a key, so they answer only the demo's own pages, under a loopback host name: pages
of other sites cannot call them, neither directly nor by DNS rebinding.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

from aiohttp import web

from bridge.app import Bridge
from bridge.auth.issuing import signed_token
from bridge.core.broker_names import BrokerNames
from bridge.core.message import user_problem
from bridge.core.origins import OriginRules
from bridge.http.authentication import Handler, on_loopback_only
from bridge.http.page_files import read_page_files
from bridge.http.request_body import text_field
from bridge.http.responses import json_response, problem

_PAGE: Final = "index.html"
# No inline code, no content of other origins, framed by the demo's own pages only.
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
_OWN_PAGES: Final = OriginRules()  # allows the same host and port only
_BODY_TIMEOUT_S: Final = 10.0
_REFUSAL: Final = "the demo answers only its own page on this machine"


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """A command to copy into a shell."""

    title: str
    text: str


class DemoPage:
    """The page's routes; `commands` returns the shell commands that it shows."""

    def __init__(
        self,
        bridge: Bridge,
        *,
        token_life_s: float,
        commands: Callable[[], Sequence[ShellCommand]],
    ) -> None:
        self._bridge = bridge
        self._token_life_s = token_life_s
        self._commands = commands

    def add_routes(self, app: web.Application) -> None:
        """Serve the page at `/`, its files and its requests below `/demo/`."""
        own = resources.files("bridge.demo") / "assets"
        shared = resources.files("bridge.http") / "assets"
        files = [*own.iterdir(), shared / "base.css"]
        for name, handler in read_page_files(files, headers=_HEADERS).items():
            app.router.add_get(
                f"/demo/{name}", on_loopback_only(handler, refusal=_REFUSAL)
            )
            if name == _PAGE:
                app.router.add_get("/", on_loopback_only(handler, refusal=_REFUSAL))
        publish = self._bridge.components.publish_endpoint.publish
        app.router.add_get("/demo/facts", _for_own_pages(self._facts))
        app.router.add_post("/demo/token", _for_own_pages(self._token))
        app.router.add_post("/demo/cut", _for_own_pages(self._cut))
        app.router.add_post("/demo/publish", _for_own_pages(publish))

    async def _facts(self, _request: web.Request) -> web.Response:
        reasons = self._bridge.unready_reasons()
        return json_response(
            {
                "lines": self._commands(),
                "ready": not reasons,
                "reasons": reasons,
                "exchange": BrokerNames(self._bridge.settings.namespace).messages,
            }
        )

    async def _token(self, request: web.Request) -> web.Response:
        user = text_field(await request.read(), "user")
        fault = user_problem(user) if user is not None else "is missing"
        if user is None or fault:
            return problem(422, f"user {fault}", pointer="/user")
        life_s = self._token_life_s
        token = signed_token(self._bridge.settings, user, ttl_s=life_s)
        return json_response({"token": token, "expires_in_s": life_s})

    async def _cut(self, request: web.Request) -> web.Response:
        """Cut the connection of a window without a close frame, as a bad network would."""
        sid = text_field(await request.read(), "sid")
        for window in self._bridge.components.sockets.rooms:
            if window.sid == sid:
                window.session.close("disconnected by the demo", abort=True)
                return json_response({})
        return problem(404, "there is no such window", pointer="/sid")


def _for_own_pages(handler: Handler) -> Handler:
    """Refuse requests that a page of another origin can cause."""

    async def guard(request: web.Request) -> web.StreamResponse:
        is_own = _OWN_PAGES.allows(
            request.headers.get("Origin"),
            host=request.headers.get("Host"),
            fetch_site=request.headers.get("Sec-Fetch-Site"),
        )
        if not is_own:
            return problem(403, _REFUSAL)
        # A form of another site can send plain text. JSON needs a CORS preflight, which
        # this server refuses.
        if request.method == "POST" and request.content_type != "application/json":
            return problem(415, "the body must be application/json")
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                await request.read()  # cached in the request, for the handler
        except TimeoutError:
            return problem(408, "the body did not arrive in time")
        return await handler(request)

    return on_loopback_only(guard, refusal=_REFUSAL)
