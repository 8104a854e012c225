"""
Requests from pages to workers: which ones are accepted, and how they are answered.

A request never waits in bridge. It is published or refused at once; then its page gets one
answer, when the worker replies or the request ends in another way (`amqp/requests.py`).
"""

from collections.abc import Collection, Sequence
from time import monotonic, time
from typing import Final, TypeVar

import orjson

from bridge.amqp.requests import OutgoingRequest, RequestClient, RequestResult
from bridge.core import packets
from bridge.core.event_schemas import EventSchemas
from bridge.core.json_text import parse_json, render_json
from bridge.core.message import Delivery, Rejection, parse_body
from bridge.core.packets import Packet
from bridge.core.properties import Properties
from bridge.enums import (
    HEADER_TRACE_PARENT,
    HEADER_USER,
    HEADER_WINDOW,
    REPLY_TYPE_ERROR,
    RequestOutcome,
)
from bridge.metrics import Metrics
from bridge.sockets.engineio.session import EngineSession
from bridge.sockets.window import Window
from bridge.tracing import Tracing

_ERROR: Final = REPLY_TYPE_ERROR.encode()
_NULL: Final = b"null"

_Key = TypeVar("_Key", EngineSession, str)


class PageRequests:
    """
    The requests of all windows of this process.

    Args:
        client: Sends them.
        events: The events that are accepted (BRIDGE_PAGE_EVENTS).
        schemas: What their data must be; ``None`` allows any JSON.
        max_reply_bytes: The size limit of a reply (BRIDGE_MAX_MESSAGE_BYTES).
        max_per_window: How many requests of one window may be in flight.
        max_per_user: How many of one user: those of a window that has left still wait for
            their worker, and a page could connect again and again.
        metrics: Counts requests by outcome, and those in flight.
        tracing: ``None`` without spans.

    Attributes:
        client: As given; it must run.

    """

    def __init__(
        self,
        client: RequestClient,
        *,
        events: Collection[str],
        schemas: EventSchemas | None,
        max_reply_bytes: int,
        max_per_window: int,
        max_per_user: int,
        metrics: Metrics,
        tracing: Tracing | None = None,
    ) -> None:
        self.client = client
        self._events = frozenset(events)
        self._schemas = schemas
        self._max_reply_bytes = max_reply_bytes
        self._max_per_window = max_per_window
        self._max_per_user = max_per_user
        self._metrics = metrics
        self._tracing = tracing
        # By window, and by user.
        self._in_flight: dict[EngineSession, int] = {}
        self._of_user: dict[str, int] = {}
        metrics.requests_in_flight.set_function(lambda: sum(self._in_flight.values()))

    def replace_rules(
        self, schemas: EventSchemas | None, *, max_reply_bytes: int
    ) -> None:
        """Use reloaded schemas and limits."""
        self._schemas = schemas
        self._max_reply_bytes = max_reply_bytes

    def process(self, window: Window, packet: Packet, arguments: list[object]) -> None:
        """Send a request, or answer why not. `arguments` begin with the event."""
        event = str(arguments[0])
        session, user = window.session, window.user
        in_flight = self._in_flight.get(session, 0)
        of_user = self._of_user.get(user, 0)
        body = self._check(event, arguments[1:])
        if isinstance(body, str):
            self._answer(session, packet, RequestOutcome.REFUSED, message=body)
            return
        if (
            in_flight >= self._max_per_window
            or of_user >= self._max_per_user
            or session.is_over_limit
        ):
            self._answer(session, packet, RequestOutcome.FLOODING)
            return
        self._in_flight[session] = in_flight + 1
        self._of_user[user] = of_user + 1
        headers = {HEADER_USER: user, HEADER_WINDOW: window.sid}
        span = None
        if self._tracing is not None:
            span, trace_parent = self._tracing.start_request(event, now_s=time())
            headers[HEADER_TRACE_PARENT] = trace_parent
        started_s = monotonic()

        def end(result: RequestResult) -> None:
            _decrease(self._in_flight, session)
            _decrease(self._of_user, user)
            if isinstance(result, Delivery):
                self._metrics.request_seconds.observe(monotonic() - started_s)
            outcome = self._end(session, packet, result)
            if self._tracing is not None and span is not None:
                self._tracing.end_request(span, outcome, now_s=time())

        wants_reply = packet.id is not None
        self.client.send(OutgoingRequest(event, body, headers, wants_reply), end)

    def _check(self, event: str, data: Sequence[object]) -> bytes | str:
        """Return the body of a request, or why it is refused."""
        if event not in self._events:
            return "the event is not in BRIDGE_PAGE_EVENTS"
        if len(data) > 1:
            return "a request has one argument"
        try:
            body = render_json(data[0]) if data else _NULL
        except orjson.JSONEncodeError:
            return "the data is nested too deep"
        schema = self._schemas and self._schemas.find_for_page(event)
        if not schema:
            return body
        # Parsed again without lone surrogates, which a schema cannot check.
        violation = schema.violation(parse_json(body), size_bytes=len(body))
        return violation.text if violation else body

    def _end(
        self, session: EngineSession, packet: Packet, result: RequestResult
    ) -> RequestOutcome:
        if session.is_closed and packet.id is not None:
            return self._answer(session, packet, RequestOutcome.LEFT)
        if isinstance(result, RequestOutcome):
            return self._answer(session, packet, result)
        properties = result.properties
        data = self._parse_reply(result.body, properties)
        if isinstance(data, str):
            return self._answer(session, packet, RequestOutcome.REFUSED, message=data)
        if properties.type != _ERROR:
            return self._answer(session, packet, RequestOutcome.ANSWERED, data=data)
        error = parse_json(data)
        text = error.get("message") if isinstance(error, dict) else error
        message = text if isinstance(text, str) else "the worker reported an error"
        return self._answer(
            session, packet, RequestOutcome.REFUSED, data=data, message=message
        )

    def _parse_reply(self, body: bytes, properties: Properties) -> bytes | str:
        """Return the JSON of a worker's reply, or why the page cannot receive it."""
        if len(body) > self._max_reply_bytes:
            return "the worker's reply is larger than BRIDGE_MAX_MESSAGE_BYTES"
        data = parse_body(
            body or _NULL,
            content_type=properties.content_type,
            content_encoding=properties.content_encoding,
        )
        if isinstance(data, Rejection):
            return f"the worker's reply cannot be read: {data.text}"
        return data

    def _answer(
        self,
        session: EngineSession,
        packet: Packet,
        outcome: RequestOutcome,
        *,
        data: bytes | None = None,
        message: str = "",
    ) -> RequestOutcome:
        """Count the outcome, and send the answer if the page waits for one."""
        self._metrics.requests.labels(outcome).inc()
        if packet.id is not None:
            answer: dict[str, object] = {"ok": not outcome.is_error}
            if outcome.is_error:
                answer |= {"code": outcome, "message": message or outcome.explanation}
            if data is not None:
                answer["data"] = orjson.Fragment(data)
            session.send(packets.reply(packet.id, answer))
        return outcome


def _decrease(counts: dict[_Key, int], key: _Key) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
