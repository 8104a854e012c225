"""Bodies and cursors of the HTTP APIs, against json."""

import json
from contextlib import suppress
from typing import Final

import orjson

from bridge.core.contracts.messages import Problem
from bridge.core.contracts.validation import parse_publish_request, publish_problem
from bridge.core.json_text import parse_json, render_json
from bridge.core.message import MessageLimits, event_problem, user_problem
from bridge.http.api.dead_letter_pages import parse_page_end
from bridge.http.api.endpoint import ApiProblem
from bridge.http.api.paging import parse_text_cursor, render_cursor
from bridge.http.request_body import text_field

MODULES: Final = (
    "bridge.core.contracts.validation",
    "bridge.core.json_text",
    "bridge.http.api.paging",
    "bridge.http.api.dead_letter_pages",
)
SEEDS: Final = (
    b'{"user":"ann","data":{"text":"\\ud83d\\ude00 \\ud800"},"event":"order.changed","id":"a","ttl_s":5}',
    b'{"user":"","data":NaN}',
    b'{"user":"ann","data":[1e308,12345678901234567890,-0.0,null,true],"ttl_s":1.5}',
    b'{"user":"\\udfff","data":1,"\\ud800~/":2}',
    b'["user"]',
    b'{"user":"ann","data":' + b"[" * 1020 + b'"\\ud800"' + b"]" * 1020 + b"}",
    render_cursor([3, 1.5, ["a"]]).encode(),
    render_cursor([0, None, []]).encode(),
    render_cursor("ann").encode(),
    b'{"token":"a"}',
    b'{"user":"ann","data":"\\\\ud800\\\\\\ud800"}',
)


def fuzz_one(data: bytes) -> None:
    """Faults are answered with a problem; accepted data reaches the page as it was sent."""
    text_field(data, "token")
    with suppress(UnicodeDecodeError):
        text = data.decode()
        for parse in (parse_text_cursor, parse_page_end):
            with suppress(ApiProblem):
                parse(text)
    request = parse_publish_request(data)
    if isinstance(request, Problem):
        assert request.status in {400, 422}
        assert len(request.detail) < 1000
        orjson.dumps([request.detail, request.pointer])
        return
    assert user_problem(request.user) is None
    assert request.event is None or event_problem(request.event) is None
    orjson.dumps([request.user, request.event, request.id, request.ttl_s])
    rendered = render_json(request.data)
    parse_json(rendered)  # as the pipeline does
    limits = MessageLimits(len(rendered))
    assert publish_problem(request, rendered, limits=limits, schemas=None) is None
    with suppress(RecursionError):
        sent = json.loads(data)["data"]
        assert _comparable(json.loads(rendered)) == _comparable(sent)


def _comparable(value: object) -> str:
    """Return text that does not tell a large integer from a float, which orjson reads."""
    return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)
