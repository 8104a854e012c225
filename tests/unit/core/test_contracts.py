"""Validation of requests: what is accepted, and how a refusal is described."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.core.contracts.base import EVENT_NAME_MAX_BYTES, TTL_MAX_S
from bridge.core.contracts.messages import Problem, PublishRequest
from bridge.core.contracts.validation import parse_publish_request, validation_problem
from bridge.core.message import Delivery, Message, MessageLimits, parse_delivery
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.properties import Properties, render_properties


def refused(body: object) -> Problem:
    """Return the problem with `body`, which must be invalid."""
    result = parse_publish_request(
        body if isinstance(body, bytes) else orjson.dumps(body)
    )
    assert isinstance(result, Problem), result
    return result


def test_the_smallest_request_is_a_user_and_data() -> None:
    """Publishing must need no more than one short line."""
    request = parse_publish_request(b'{"user": "alice", "data": null}')

    assert isinstance(request, PublishRequest)
    assert (request.user, request.data) == ("alice", None)
    assert (request.event, request.id, request.ttl_s) == (None, None, None)


def test_options_become_those_of_a_message() -> None:
    """They are the headers of AMQP without their beginning."""
    body = {"user": "alice", "data": 1, "key": "k", "throttle": "250ms", "retain": True}
    request = parse_publish_request(orjson.dumps(body))

    assert isinstance(request, PublishRequest)
    expected = MessageOptions(key="k", throttle_s=0.25, is_retained=True)
    assert request.options == expected


def test_a_message_may_count_as_undelivered_without_a_receipt() -> None:
    """Or with one."""
    body = {"user": "alice", "data": 1, "undelivered_after": "1.5s"}
    for receipt in (False, True):
        request = parse_publish_request(orjson.dumps(body | {"receipt": receipt}))
        assert isinstance(request, PublishRequest)
        tracking = Tracking(wants_receipt=receipt, undelivered_after_s=1.5)
        assert request.options == MessageOptions(tracking=tracking)


@pytest.mark.parametrize(
    ("options", "detail", "pointer"),
    [
        (
            {"ephemeral": True, "undelivered_after": "1s"},
            "ephemeral excludes receipt and undelivered_after",
            "",
        ),
        (
            {"undelivered_after": "0s"},
            "undelivered_after is not a duration such as 45s",
            "/undelivered_after",
        ),
        ({"throttle": "1s"}, "throttle needs key", ""),
        ({"clear": True}, "clear needs key", ""),
        (
            {"key": "k", "clear": True, "retain": True},
            "retain and clear exclude each other",
            "",
        ),
        (
            {"key": "k", "ephemeral": True, "throttle": "1s"},
            "throttle and ephemeral exclude each other",
            "",
        ),
        (
            {"key": "k", "throttle": "soon"},
            "throttle is not a duration from 1ms to 1h, such as 250ms",
            "/throttle",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    options: dict[str, object], detail: str, pointer: str
) -> None:
    """The broker would accept the message, and it would become a dead letter."""
    problem = refused({"user": "alice", "data": 1} | options)

    assert (problem.status, problem.detail, problem.pointer) == (422, detail, pointer)


def test_null_means_absent_for_optional_fields() -> None:
    """Many languages serialize missing values as null."""
    body = {"user": "alice", "data": 1, "event": None, "id": None, "ttl_s": None}

    assert isinstance(parse_publish_request(orjson.dumps(body)), PublishRequest)


@pytest.mark.parametrize(
    ("body", "pointer", "text"),
    [
        (b"", None, "the body is not JSON: "),
        (b"{", None, "the body is not JSON: "),
        (b"\xff", None, "the body is not JSON: "),
        (b'{"user": "a", "data": NaN}', None, "the body is not JSON: "),
        (b"[" * 10000, None, "the body is not JSON: "),
        ([], "", "the body is not a JSON object"),
        ("alice", "", "the body is not a JSON object"),
        (None, "", "the body is not a JSON object"),
        ({"user": 7, "data": 1}, "/user", "user should be a valid string"),
        ({"user": "a", "data": 1, "ttl_s": "5"}, "/ttl_s", "ttl_s should be a valid"),
        ({"user": "a", "data": 1, "ttl_s": True}, "/ttl_s", "ttl_s should be a valid"),
        ({"user": "a", "data": 1, "event": ["x"]}, "/event", "event should be a valid"),
        ({"user": "a", "data": 1, "id": 5}, "/id", "id should be a valid string"),
        (
            {"user": "a", "data": 1, "receipt": "yes"},
            "/receipt",
            "receipt should be true or false",
        ),
        ({"user": "a", "data": 1, "ttl": 5}, "/ttl", "'ttl' is not a field, known are"),
        ({"user": "a", "data": 1, "a/b~": 5}, "/a~1b~0", "'a/b~' is not a field"),
    ],
)
def test_a_body_of_the_wrong_form_is_malformed(
    body: object, pointer: str | None, text: str
) -> None:
    """400 means that the program that sends it must be changed."""
    answer = refused(body)

    assert (answer.status, answer.title) == (400, "Bad Request")
    assert answer.pointer == pointer
    assert answer.detail.startswith(text)


@pytest.mark.parametrize(
    ("change", "pointer", "text"),
    [
        ({"user": ""}, "/user", "user is empty"),
        ({"user": "a\n"}, "/user", "user contains a control character"),
        ({"user": "ü" * 128}, "/user", "user has 256 bytes, allowed are 255"),
        ({"event": ""}, "/event", "event is empty, expected an event name"),
        ({"event": "connect"}, "/event", "event is the reserved name 'connect'"),
        ({"event": "bridge:x"}, "/event", "event is the reserved name 'bridge:x'"),
        ({"event": "e" * 129}, "/event", "event has 129 characters, allowed are 128"),
        ({"event": "ü" * 128}, "/event", "event has 256 bytes, allowed are 255"),
        ({"id": ""}, "/id", "id is empty"),
        ({"id": "ü" * 128}, "/id", "id has 256 bytes, allowed are 255"),
        ({"ttl_s": -1}, "/ttl_s", "ttl_s should be greater than or equal to 0"),
        ({"ttl_s": TTL_MAX_S + 1}, "/ttl_s", "ttl_s should be less than or equal to"),
    ],
)
def test_a_value_that_cannot_be_used_is_unprocessable(
    change: dict[str, object], pointer: str, text: str
) -> None:
    """422 means that only this value is wrong."""
    answer = refused({"user": "alice", "data": 1} | change)

    assert answer.status == 422
    assert answer.pointer == pointer
    assert answer.detail.startswith(text)


@pytest.mark.parametrize("name", ["user", "data"])
def test_a_missing_field_is_unprocessable(name: str) -> None:
    """422 is the documented status for a missing user, and so it is for missing data."""
    body = {"user": "alice", "data": 1}
    del body[name]

    answer = refused(body)

    assert (answer.status, answer.pointer, answer.detail) == (
        422,
        f"/{name}",
        f"{name} is missing",
    )


def test_an_unknown_field_takes_precedence_over_a_bad_value() -> None:
    """The status and the text must describe the same fault."""
    with pytest.raises(ValidationError) as caught:
        PublishRequest.model_validate({"user": "", "data": 1, "events": "x"})

    found = validation_problem(caught.value, known=())
    assert (found.status, found.pointer) == (400, "/events")


def test_data_that_can_be_parsed_but_not_written_is_refused() -> None:
    """Orjson parses deeper nesting than it writes, which must not become a 500."""
    nested = b"[" * 300 + b"]" * 300

    answer = refused(b'{"user": "alice", "data": %b}' % nested)

    assert (answer.status, answer.detail) == (422, "data is nested too deep")


def test_data_with_a_lone_surrogate_is_accepted() -> None:
    """`JSON.stringify` writes half an emoji as an escape."""
    request = parse_publish_request(rb'{"user": "alice", "data": "cut \ud83d"}')

    assert isinstance(request, PublishRequest)
    assert request.data == "cut \ud83d"


@pytest.mark.parametrize("field", ["user", "event", "id", "colour \\ud83d"])
def test_a_field_with_a_lone_surrogate_is_refused(field: str) -> None:
    """No property of AMQP can hold it; the answer must be JSON all the same."""
    answer = refused(b'{"user": "alice", "data": 1, "%b": "\\ud83d"}' % field.encode())

    assert answer.status in {400, 422}
    assert orjson.dumps(answer.model_dump())


@pytest.mark.parametrize("field", ["user", "event", "id"])
def test_text_that_is_not_unicode_is_refused(field: str) -> None:
    """Arguments of a command may contain lone surrogates, which cannot be encoded."""
    with pytest.raises(ValidationError) as caught:
        PublishRequest.model_validate(
            {"user": "alice", "data": 1} | {field: "a\udc80b"}
        )

    found = validation_problem(caught.value, known=())
    assert (found.pointer, found.detail) == (
        f"/{field}",
        f"{field} is not valid Unicode",
    )


def test_a_refusal_never_quotes_a_value() -> None:
    """A token in the wrong field must not appear in the sender's log."""
    answer = refused({"user": ["s3cret"], "data": "s3cret", "ttl_s": "s3cret"})

    assert "s3cret" not in answer.model_dump_json()


def test_the_name_of_an_unknown_field_is_shortened() -> None:
    """An answer must not grow with its request."""
    assert len(refused({"x" * 100_000: 1}).detail) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(
    user=st.text(min_size=1, max_size=300),
    event=st.text(min_size=1, max_size=140),
    data=json_values,
    message_id=st.text(min_size=1, max_size=300),
)
def test_a_message_accepted_over_http_is_never_rejected_later(
    user: str, event: str, data: object, message_id: str
) -> None:
    """A 202 promises delivery, so the pipeline must not dead-letter the message."""
    body = {"user": user, "event": event, "data": data, "id": message_id}
    request = parse_publish_request(orjson.dumps(body))
    if isinstance(request, Problem):
        assert request.status == 422
        return

    assert request.event is not None
    assert len(request.event.encode()) <= EVENT_NAME_MAX_BYTES
    delivery = Delivery(
        tag=1,
        redelivered=False,
        exchange=b"bridge.messages",
        routing_key=request.user.encode(),
        raw_properties=render_properties(
            Properties(type=request.event.encode(), message_id=message_id.encode())
        ),
        body=orjson.dumps(request.data),
        queue="q",
    )
    message = parse_delivery(delivery, limits=MessageLimits(1 << 20), now_s=0.0)

    assert isinstance(message, Message)
    assert (message.user, message.event, message.id) == (user, event, message_id)
    assert orjson.loads(message.data) == data
