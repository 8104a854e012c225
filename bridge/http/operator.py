"""The operator door: `/api/*`, `/metrics`, `/console`, `/health/*`, the last alone free."""

from collections.abc import Callable
from time import time
from typing import Final
from uuid import uuid4

import orjson
from aiohttp import web

from bridge.core.contracts.messages import Problem
from bridge.core.contracts.publish_request import parse_publish_request
from bridge.core.journal import Journal, JournalEntry
from bridge.enums import Stage
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from bridge.http.api.endpoint import Api
from bridge.http.authentication import Handler, Keys, guarded
from bridge.http.console.sign_in import SignIn, add_console_routes
from bridge.http.health import Health, add_health_routes
from bridge.http.problems import SERVES, answer_with_problems, harden, problem
from bridge.http.publishing import EventCheck, MessagePublisher
from bridge.http.request_body import read_body
from bridge.metrics import Metrics

_RETRY_AFTER_S: Final = "2"
# Around the data stand the other fields, and a character may be written as \u0000.
_FIELDS_MAX_BYTES: Final = 8192


def operator_app(
    *,
    health: Health,
    publish: Handler,
    metrics: Metrics,
    sign_in: SignIn,
    publish_keys: Keys,
    add_api: Callable[[Api], None] | None = None,
) -> web.Application:
    """
    Build the operator door. Keys may change while it is open.

    Args:
        health: How the bridge is.
        publish: Answers `POST /api/publish`.
        metrics: What `/metrics` shows.
        sign_in: Its keys open all but publishing; its sessions the console and the API.
        publish_keys: Open publishing.
        add_api: Adds the groups of the operator's API.

    """
    app = web.Application(
        middlewares=[answer_with_problems],
        client_max_size=0,  # the publishing door has its own, which may change
    )
    app[SERVES] = (
        "this is the operator port: /api/*, /console, /metrics and /health/*; "
        "pages connect to the public port (BRIDGE_PORT)"
    )
    app.on_response_prepare.append(harden)
    add_health_routes(app, health)

    async def render_metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=metrics.render(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    app.router.add_get("/metrics", guarded(sign_in.keys, render_metrics))
    app.router.add_post("/api/publish", guarded(publish_keys, publish))
    add_console_routes(app, sign_in)
    if add_api is not None:
        add_api(Api(app, lambda handler: guarded(sign_in, handler)))
    return app


class PublishDoor:
    """Publishing over HTTP, for those without an AMQP client."""

    def __init__(
        self,
        publisher: MessagePublisher,
        metrics: Metrics,
        *,
        max_message_bytes: int,
        check: EventCheck | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.max_message_bytes = max_message_bytes  # may change while the door is open
        self._check = check or EventCheck()
        self._publisher = publisher
        self._metrics = metrics
        self._journal = journal or Journal()

    async def publish(self, request: web.Request) -> web.Response:
        """Answer 202 once the broker has confirmed the message."""
        body = await self._read(request)
        if body is None:
            detail = (
                f"the body is too large: data may have {self.max_message_bytes} bytes"
            )
            return problem(413, detail)
        asked = parse_publish_request(body)
        if isinstance(asked, Problem):
            return problem(asked.status, asked.detail, pointer=asked.pointer)
        data = orjson.dumps(asked.data)
        if len(data) > self.max_message_bytes:
            # Or it would be confirmed now and become a dead letter later.
            detail = f"data has {len(data)} bytes, allowed are {self.max_message_bytes}"
            return problem(413, detail, pointer="/data")
        refusal = self._check.refusal(asked.event, asked.data)
        if refusal is not None:
            return refusal
        message_id = asked.id or str(uuid4())
        began_s = time()
        try:
            await self._publisher.publish_message(
                user=asked.user,
                event=asked.event,
                data=data,
                message_id=message_id,
                ttl_s=asked.ttl_s,
            )
        except (BrokerUnavailableError, PublishRefusedError) as exc:
            return problem(503, str(exc), headers={"Retry-After": _RETRY_AFTER_S})
        self._metrics.published.inc()
        # As of its beginning: the bridge may have taken it before the confirm is here.
        text = "over HTTP, confirmed by the broker"
        self._journal.note(
            JournalEntry(began_s, Stage.PUBLISHED, asked.user, message_id, text=text)
        )
        return web.Response(
            status=202,
            body=orjson.dumps({"id": message_id}),
            content_type="application/json",
        )

    async def _read(self, request: web.Request) -> bytes | None:
        """Read the body; `None` if it is too large."""
        return await read_body(
            request, max_bytes=self.max_message_bytes + _FIELDS_MAX_BYTES
        )
