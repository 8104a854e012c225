"""The application on the public port: `/socket.io/`, the client's script, `/health/*`."""

from collections.abc import Callable
from importlib import resources
from typing import Final

from aiohttp import web

from bridge.http.authentication import Handler
from bridge.http.health import add_health_routes
from bridge.http.responses import SERVES, answer_with_problems, harden

# The stock client, also as a module (`import`), and their maps for the developer tools.
_SCRIPTS: Final = (
    "socket.io.min.js",
    "socket.io.min.js.map",
    "socket.io.esm.min.js",
    "socket.io.esm.min.js.map",
)
_TYPES: Final = {"js": "text/javascript", "map": "application/json"}
_SCRIPT_MAX_AGE_S: Final = 3600


def public_app(
    *,
    unready_reasons: Callable[[], list[str]],
    warnings: Callable[[], list[str]],
    route_sockets: Callable[[web.Application], None],
    legacy: Handler | None,
) -> web.Application:
    """Build the application; `legacy` handles `GET /`, and ``None`` switches it off."""
    app = web.Application(middlewares=[answer_with_problems])
    app[SERVES] = (
        "this is the public port, for pages: /socket.io/ and /health/*; "
        "everything else is on the operator port (BRIDGE_OPERATOR_PORT)"
    )
    app.on_response_prepare.append(harden)
    add_health_routes(app, unready_reasons, warnings)
    _add_scripts(app)
    route_sockets(app)
    if legacy is not None:
        app.router.add_get("/", legacy, allow_head=False)
    return app


def _add_scripts(app: web.Application) -> None:
    """Serve the stock client, so that a page depends on no other host."""
    assets = resources.files("bridge.http") / "assets"
    for name in _SCRIPTS:
        serve = _server_of(
            (assets / name).read_bytes(), _TYPES[name.rpartition(".")[2]]
        )
        app.router.add_get(f"/socket.io/{name}", serve)
        if name == _SCRIPTS[0]:
            app.router.add_get("/socket.io/socket.io.js", serve)


def _server_of(content: bytes, content_type: str) -> Handler:
    """Return the handler that answers with `content`."""
    headers = {
        "Cache-Control": f"public, max-age={_SCRIPT_MAX_AGE_S}",
        # Pages of other origins may load the script, as from any CDN.
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(
            body=content, content_type=content_type, charset="utf-8", headers=headers
        )

    return serve
