"""The application on the public port: `/socket.io/`, the client's script, `/health/*`."""

from collections.abc import Callable
from importlib import resources
from typing import Final

from aiohttp import web

from bridge.http.authentication import Handler
from bridge.http.health import add_health_routes
from bridge.http.responses import SERVES, answer_with_problems, harden

_SCRIPT: Final = "socket.io.min.js"
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
    _add_script(app)
    route_sockets(app)
    if legacy is not None:
        app.router.add_get("/", legacy, allow_head=False)
    return app


def _add_script(app: web.Application) -> None:
    """Serve the stock client, so that a page depends on no other host."""
    assets = resources.files("bridge.http") / "assets"
    script = (assets / _SCRIPT).read_bytes()
    headers = {
        "Cache-Control": f"public, max-age={_SCRIPT_MAX_AGE_S}",
        # Pages of other origins may load the script, as from any CDN.
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(
            body=script,
            content_type="text/javascript",
            charset="utf-8",
            headers=headers,
        )

    for path in ("/socket.io/socket.io.js", "/socket.io/socket.io.min.js"):
        app.router.add_get(path, serve)
