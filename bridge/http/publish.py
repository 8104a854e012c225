"""Publishing over HTTP: `POST /api/publish`, and the legacy `GET /?name=USER&msg=TEXT`."""

from time import time
from typing import Final
from uuid import uuid4

import orjson
from aiohttp import web

from bridge.amqp.publish.messages import MessagePublisher
from bridge.core.contracts.messages import Problem
from bridge.core.contracts.validation import (
    data_problem,
    parse_publish_request,
    publish_problem,
)
from bridge.core.event_schemas import EventSchemas
from bridge.core.journal import Journal, JournalEntry
from bridge.core.json_text import render_json
from bridge.core.message import MessageLimits, user_problem
from bridge.enums import Stage
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from bridge.http.request_body import read_body
from bridge.http.responses import json_response, problem
from bridge.metrics import Metrics

_RETRY_AFTER_S: Final = "2"
# The body holds other fields besides the data, and a character of the data may be written
# as an escape (\u0000).
FIELDS_MAX_BYTES: Final = 8192


class CurrentSchemas:
    """
    Holds the schemas of events (BRIDGE_SCHEMAS), by which data is checked before a publish.

    Otherwise data that its schema does not allow would be confirmed to the client now and
    become a dead letter later.

    Attributes:
        schemas: ``None`` allows all data.

    """

    def __init__(self, schemas: EventSchemas | None = None) -> None:
        self.schemas = schemas

    def replace(self, schemas: EventSchemas | None) -> None:
        """Hold `schemas` from now on."""
        self.schemas = schemas


class PublishEndpoint:
    """`POST /api/publish`, for workers without an AMQP client."""

    def __init__(
        self,
        publisher: MessagePublisher,
        metrics: Metrics,
        *,
        limits: MessageLimits,
        current: CurrentSchemas | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._limits = limits
        self._current = current or CurrentSchemas()
        self._publisher = publisher
        self._metrics = metrics
        self._journal = journal or Journal()

    def replace_limits(self, limits: MessageLimits) -> None:
        """Accept messages within `limits` from now on."""
        self._limits = limits

    async def publish(self, request: web.Request) -> web.Response:
        """Answer 202 once the broker has confirmed the message."""
        max_bytes = self._limits.body_bytes
        body = await read_body(request, max_bytes=max_bytes + FIELDS_MAX_BYTES)
        if body is None:
            return body_too_large(max_bytes)
        message = parse_publish_request(body)
        if isinstance(message, Problem):
            return _refusal(message)
        data = render_json(message.data)
        fault = publish_problem(
            message, data, limits=self._limits, schemas=self._current.schemas
        )
        if fault is not None:
            return _refusal(fault)
        message_id = message.id or str(uuid4())
        began_s = time()
        try:
            await self._publisher.publish_message(
                user=message.user,
                event=message.event,
                data=data,
                message_id=message_id,
                ttl_s=message.ttl_s,
                options=message.options,
            )
        except (BrokerUnavailableError, PublishRefusedError) as exc:
            return _unavailable(exc)
        self._metrics.published.inc()
        # The entry has the time before publishing: the bridge may consume the message
        # before the confirm arrives here.
        text = "over HTTP, confirmed by the broker"
        self._journal.note(
            JournalEntry(began_s, Stage.PUBLISHED, message.user, message_id, text=text)
        )
        return json_response({"id": message_id}, status=202)


class LegacyPushEndpoint:
    """
    `GET /?name=USER&msg=TEXT` on the public port, for old clients.

    It is off by default: any page or prefetch can trigger a GET that has an effect, and
    every proxy logs its text.
    """

    def __init__(
        self, publisher: MessagePublisher, current: CurrentSchemas | None = None
    ) -> None:
        self._publisher = publisher
        self._current = current or CurrentSchemas()

    async def push(self, request: web.Request) -> web.Response:
        """Publish ``{"code": 0, "data": TEXT}`` as event `message`."""
        user = request.query.get("name", "")
        fault = user_problem(user)
        if fault:
            return problem(422, f"name {fault}", pointer="name")
        text = request.query.get("msg")
        if text is None:
            return problem(422, "msg is missing, expected the text", pointer="msg")
        try:
            data = orjson.dumps({"code": 0, "data": text})
        except orjson.JSONEncodeError:
            return problem(422, "msg is not valid Unicode", pointer="msg")
        violation = data_problem(None, data, self._current.schemas, pointer="msg")
        if violation is not None:
            return _refusal(violation)
        try:
            await self._publisher.publish_message(
                user=user, event=None, data=data, message_id=None, ttl_s=None
            )
        except (BrokerUnavailableError, PublishRefusedError) as exc:
            return _unavailable(exc)
        return json_response({"code": 0})


def body_too_large(max_message_bytes: int) -> web.Response:
    """Return the answer to a body that cannot hold data of an allowed size."""
    detail = f"the body is too large: data may have {max_message_bytes} bytes"
    return problem(413, detail)


def _refusal(found: Problem) -> web.Response:
    return problem(found.status, found.detail, pointer=found.pointer)


def _unavailable(exc: Exception) -> web.Response:
    return problem(503, str(exc), headers={"Retry-After": _RETRY_AFTER_S})
