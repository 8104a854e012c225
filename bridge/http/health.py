"""`/health/live` and `/health/ready`, on both ports."""

from collections.abc import Callable

from aiohttp import web

from bridge.http.responses import json_response


def add_health_routes(
    app: web.Application,
    unready_reasons: Callable[[], list[str]],
    warnings: Callable[[], list[str]],
) -> None:
    """Serve both probes; the bridge is ready if `unready_reasons` returns nothing."""

    async def live(_request: web.Request) -> web.Response:
        # An answer proves that the event loop runs. If a task fails, the process ends, so
        # there is no state in which the loop runs and the bridge is dead. An unavailable
        # broker or store is no reason for a restart.
        return render_liveness()

    async def ready(_request: web.Request) -> web.Response:
        return render_readiness(unready_reasons(), warnings())

    app.router.add_get("/health/live", live)
    app.router.add_get("/health/ready", ready)


def render_liveness() -> web.Response:
    """Return the answer of `/health/live`."""
    return json_response({"live": True})


def render_readiness(reasons: list[str], warnings: list[str]) -> web.Response:
    """Return the answer of `/health/ready`: 503 if there is a reason, else 200."""
    body = {"ready": not reasons, "reasons": reasons, "warnings": warnings}
    return json_response(body, status=503 if reasons else 200)
