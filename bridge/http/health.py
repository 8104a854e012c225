"""`/health/live` and `/health/ready`, on both doors."""

from typing import Protocol

import orjson
from aiohttp import web


class Health(Protocol):
    """What the app can say of itself."""

    def unready_reasons(self) -> list[str]:
        """Say what keeps the bridge from being ready; empty if nothing does."""


def add_health_routes(app: web.Application, health: Health) -> None:
    """Answer probes: restart me if not live, send me no traffic if not ready."""

    async def live(_request: web.Request) -> web.Response:
        # Answering is the proof: the loop turns. A task that dies takes the process
        # with it, so there is no half-dead state that only this could tell of, and a
        # broker or store that is away is no reason to be restarted.
        return _json(200, {"live": True})

    async def ready(_request: web.Request) -> web.Response:
        reasons = health.unready_reasons()
        body = {"ready": not reasons, "reasons": reasons}
        return _json(503 if reasons else 200, body)

    app.router.add_get("/health/live", live)
    app.router.add_get("/health/ready", ready)


def _json(status: int, body: object) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(body), content_type="application/json"
    )
