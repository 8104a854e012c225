"""The application on the operator port: `/api/*`, `/metrics`, `/console`, `/health/*`."""

from collections.abc import Callable, Sequence

from aiohttp import web

from bridge.http.api.endpoint import Api
from bridge.http.authentication import (
    Handler,
    Keys,
    guarded,
    known_hosts_only,
)
from bridge.http.console.sign_in import SignIn, add_console_routes
from bridge.http.health import add_health_routes
from bridge.http.responses import SERVES, answer_with_problems, harden
from bridge.metrics import Metrics


def operator_app(
    *,
    unready_reasons: Callable[[], list[str]],
    warnings: Callable[[], list[str]],
    publish: Handler,
    metrics: Metrics,
    sign_in: SignIn,
    publish_keys: Keys,
    known_hosts: Sequence[str] | None = None,
    add_api: Callable[[Api], None] | None = None,
) -> web.Application:
    """
    Build the application. The keys may be replaced while it serves.

    Args:
        unready_reasons: Returns why the bridge is not ready, as sentences.
        warnings: Returns what needs attention although the bridge is ready.
        publish: Handles `POST /api/publish`.
        metrics: The content of `/metrics`.
        sign_in: Its keys are required everywhere except for publishing and health; its
            sessions are accepted by the console and the API.
        publish_keys: The keys for publishing, and for other operations for producers.
        known_hosts: The host names that are served besides those of the loopback address;
            ``None`` serves any.
        add_api: Adds the operations of the operator's API.

    """
    app = web.Application(
        middlewares=[answer_with_problems, known_hosts_only(known_hosts)],
        client_max_size=0,  # every handler limits its body itself, see read_body
    )
    app[SERVES] = (
        "this is the operator port: /api/*, /console, /metrics and /health/*; "
        "pages connect to the public port (BRIDGE_PORT)"
    )
    app.on_response_prepare.append(harden)
    add_health_routes(app, unready_reasons, warnings)

    async def render_metrics(_request: web.Request) -> web.Response:
        return metrics_response(metrics.render())

    app.router.add_get("/metrics", guarded(sign_in.keys, render_metrics))
    app.router.add_post("/api/publish", guarded(publish_keys, publish))
    add_console_routes(app, sign_in)
    if add_api is not None:
        add_api(Api(app, sign_in, publish_keys))
    return app


def metrics_response(text: bytes) -> web.Response:
    """Return metrics in the format that Prometheus scrapes."""
    return web.Response(
        body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )
