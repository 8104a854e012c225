"""
The public door: `/socket.io/`, the stock client's script, `/health/*`.

And, where it is switched on, the article's `GET /?name=USER&msg=TEXT`.
"""

from collections.abc import Callable
from importlib import resources
from typing import Final

import orjson
from aiohttp import web

from bridge.core.message import user_problem
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from bridge.http.authentication import Handler
from bridge.http.health import Health, add_health_routes
from bridge.http.problems import SERVES, answer_with_problems, harden, problem
from bridge.http.publishing import EventCheck, MessagePublisher

_SCRIPT: Final = "socket.io.min.js"
_SCRIPT_AGE_S: Final = 3600


def public_app(
    *,
    health: Health,
    route_sockets: Callable[[web.Application], None],
    legacy: Handler | None,
) -> web.Application:
    """Build the public door; `legacy` answers `GET /` where it is switched on."""
    app = web.Application(middlewares=[answer_with_problems])
    app[SERVES] = (
        "this is the public port, for pages: /socket.io/ and /health/*; "
        "all else is on the operator port (BRIDGE_OPERATOR_PORT)"
    )
    app.on_response_prepare.append(harden)
    add_health_routes(app, health)
    _add_script(app)
    route_sockets(app)
    if legacy is not None:
        app.router.add_get("/", legacy, allow_head=False)
    return app


def _add_script(app: web.Application) -> None:
    """Serve the stock client, so that a page needs nothing from any other host."""
    assets = resources.files("bridge.http") / "assets"
    script = (assets / _SCRIPT).read_bytes()
    headers = {
        "Cache-Control": f"public, max-age={_SCRIPT_AGE_S}",
        # A page of another origin may load it, as from any script host.
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


class LegacyDoor:
    """
    The article's own way to publish: a GET with the user and a text.

    Off by default: a GET that does something can be triggered by any page or prefetch,
    and its text stands in every proxy's log.
    """

    def __init__(
        self, publisher: MessagePublisher, check: EventCheck | None = None
    ) -> None:
        self._publisher = publisher
        self._check = check or EventCheck()

    async def push(self, request: web.Request) -> web.Response:
        """Publish ``{"code": 0, "data": TEXT}`` as event `message`."""
        user = request.query.get("name", "")
        fault = user_problem(user)
        if fault:
            return problem(422, f"name {fault}", pointer="name")
        text = request.query.get("msg")
        if text is None:
            return problem(422, "msg is missing, expected the text", pointer="msg")
        answer = {"code": 0, "data": text}
        try:
            data = orjson.dumps(answer)
        except orjson.JSONEncodeError:
            return problem(422, "msg is not valid Unicode", pointer="msg")
        refusal = self._check.refusal(None, answer, pointer="msg")
        if refusal is not None:
            return refusal
        try:
            await self._publisher.publish_message(
                user=user, event=None, data=data, message_id=None, ttl_s=None
            )
        except (BrokerUnavailableError, PublishRefusedError) as exc:
            return problem(503, str(exc), headers={"Retry-After": "2"})
        return web.Response(
            body=orjson.dumps({"code": 0}),
            content_type="application/json",
        )
