"""Checking the data of messages by the schemas of their events."""

import orjson
import pytest

from bridge.core.event_schemas import EventSchema, EventSchemas, Violation
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
    Rejection,
    parse_delivery,
)
from bridge.core.properties import Properties, render_properties
from bridge.core.schema_compiler import compile_schemas
from bridge.enums import DeadLetterReason

NOTE = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 10},
        "at": {"format": "date-time"},
        "a/b~c": {"type": "array", "items": {"minimum": 0}},
    },
    "required": ["text"],
    "additionalProperties": False,
}


def schemas(*, refuses_unknown: bool = False, **events: object) -> EventSchemas:
    files = {f"{name}.json": orjson.dumps(schema) for name, schema in events.items()}
    compiled = compile_schemas(files, refuses_unknown=refuses_unknown)
    assert isinstance(compiled, EventSchemas)
    return compiled


def violation_of(schema: object, data: object) -> Violation | None:
    found = schemas(note=schema).find("note")
    assert found is not None
    return found.violation(data, size_bytes=1 << 18)


def parse(
    body: bytes, *, known: EventSchemas, event: str = "note", content_type: bytes = b""
) -> Message | Rejection:
    properties = Properties(
        type=event.encode() or None, content_type=content_type or None
    )
    raw = render_properties(properties)
    delivery = Delivery(1, False, b"x", b"ann", raw, body, "q")  # noqa: FBT003 - a flag of the broker
    return parse_delivery(delivery, limits=MessageLimits(1000), now_s=0, schemas=known)


@pytest.mark.parametrize(
    ("data", "pointer", "text"),
    [
        (
            {"text": "much too long a text"},
            "/text",
            "data breaks note.json#/properties/text/maxLength at /text: "
            "the value is longer than 10 characters",
        ),
        (
            {"text": "a", "a/b~c": [1, -1]},
            "/a~1b~0c/1",
            "data breaks note.json#/properties/a~1b~0c/items/minimum at /a~1b~0c/1: "
            "the value is less than the minimum of 0",
        ),
        (
            {},
            "",
            'data breaks note.json#/required at its top: "text" is a required property',
        ),
        (
            {"text": "a", "at": "yesterday"},
            "/at",
            'data breaks note.json#/properties/at/format at /at: the value is not a "date-time"',
        ),
        (
            7,
            "",
            'data breaks note.json#/type at its top: the value is not of type "object"',
        ),
    ],
)
def test_a_violation_names_place_and_rule_but_no_value(
    data: object, pointer: str, text: str
) -> None:
    """A reader of dead letters may not have the right to read the data."""
    assert violation_of(NOTE, data) == Violation(pointer, text)


def test_valid_data_passes_and_1_0_is_an_integer() -> None:
    """JSON has only one type of number."""
    assert violation_of(NOTE, {"text": "short", "at": "2026-01-02T03:04:05Z"}) is None
    assert violation_of({"type": "integer"}, 1.0) is None


def test_a_key_cannot_flood_or_forge_a_log_line() -> None:
    """Producers choose the keys, which appear in pointers and texts."""
    data = {"text": "a", "x" * 9000: 1}
    forged = {"a\nlevel=error\x1b[31m": -1}

    long = violation_of(NOTE, data)
    lines = violation_of({"additionalProperties": {"minimum": 0}}, forged)

    assert long is not None
    assert len(long.text) < 800
    assert lines is not None
    assert lines.text.isprintable()
    assert lines.pointer == "/a\nlevel=error\x1b[31m"


def test_a_pattern_runs_in_linear_time() -> None:
    """This one takes 2 ** 100000 steps in an engine that backtracks."""
    assert violation_of({"pattern": "^(a+)+$"}, "a" * 100_000 + "!") is not None


def test_data_beyond_the_bound_of_its_schema_is_refused() -> None:
    """The engine of patterns may visit a thousand states for each character."""
    known = schemas(note={"items": {"pattern": "[ab]*a[ab]{1000}"}}, other=True)
    note = known.find("note")
    assert note is not None

    assert note.violation([{}, 1], size_bytes=32_700) is None
    assert note.violation([1] * 9, size_bytes=100_000) == Violation(
        "", "data is too large to check it by note.json"
    )
    limited = known.limited(1 << 18, 1 << 14)
    assert [schema.file for schema in limited] == ["note.json"]


def test_the_check_stops_at_the_first_violation() -> None:
    """Collecting all of them would block the event loop for most of a minute here."""
    found = violation_of({"items": {"type": "string"}}, list(range(400_000)))

    assert found is not None
    assert found.pointer == "/0"


def test_a_union_reports_the_place_unless_that_takes_too_long() -> None:
    """20 branches and 60,000 values are a million errors, and 13 s in the event loop."""
    branch = {"properties": {"list": {"items": {"required": ["x"]}}}}
    union = {"oneOf": [branch | {"maxProperties": n} for n in range(20)]}
    by_reference = {"$ref": "union.json"}
    known = schemas(note={"properties": {"a": union}}, other=by_reference, union=union)
    note, other = known.find("note"), known.find("other")
    assert note is not None
    assert other is not None

    small = note.violation({"a": {"list": [{"y": [1]}]}}, size_bytes=30)
    large = note.violation({"a": {"list": [{}] * 60_000}}, size_bytes=180_000)
    also_large = other.violation({"list": [{}] * 60_000}, size_bytes=180_000)

    assert small is not None
    assert small.pointer == "/a"
    assert large == Violation(
        "", "data breaks note.json; it is too large to find the place"
    )
    assert also_large is not None
    assert "too large" in also_large.text


def test_deep_data_does_not_crash_the_process() -> None:
    """The JSON parser accepts a thousand nested lists."""
    deep: object = []
    for _ in range(1000):
        deep = [deep]

    assert violation_of({"items": {"$ref": "#"}, "type": "array"}, deep) is None


# --- as a part of parsing ------------------------------------------------------------


def test_a_delivery_is_checked_by_the_schema_of_its_event() -> None:
    """The reason distinguishes invalid data from a malformed body."""
    known = schemas(note=NOTE, message={"type": "integer"})

    assert isinstance(parse(b'{"text":"a"}', known=known), Message)
    assert isinstance(parse(b"5", known=known, event=""), Message)
    rejection = parse(b'"5"', known=known, event="")
    assert isinstance(rejection, Rejection)
    assert rejection.reason == DeadLetterReason.SCHEMA
    assert "message.json#/type" in rejection.text


def test_a_small_nested_body_cannot_occupy_the_bridge() -> None:
    """276 bytes took 3.4 s and 665 MB, 400 ended the process, and again at each retry."""
    branch = {"required": ["of"], "properties": {"of": {"$ref": "#"}}}
    known = schemas(note={"oneOf": [branch, branch, {"type": "string"}]})

    rejection = parse(b'{"of":' * 100 + b"1" + b"}" * 100, known=known)

    assert isinstance(rejection, Rejection)
    assert rejection.reason == DeadLetterReason.SCHEMA
    assert "too recursive to find the place" in rejection.text


def test_plain_text_is_checked_as_a_json_string() -> None:
    """The page receives it in that form."""
    known = schemas(note={"type": "string", "maxLength": 3})

    good = parse(b"abc", known=known, content_type=b"text/plain")
    bad = parse(b"abcd", known=known, content_type=b"text/plain")

    assert isinstance(good, Message)
    assert good.data == b'"abc"'
    assert isinstance(bad, Rejection)


def test_an_event_without_a_schema_passes_unless_the_settings_refuse_it() -> None:
    """Teams can add schemas one by one."""
    tolerant, strict = schemas(note=NOTE), schemas(note=NOTE, refuses_unknown=True)

    assert isinstance(parse(b"1", known=tolerant, event="other"), Message)
    rejection = parse(b"1", known=strict, event="other")
    assert isinstance(rejection, Rejection)
    assert rejection.reason == DeadLetterReason.SCHEMA
    assert "has no file in BRIDGE_SCHEMAS" in rejection.text


def test_a_malformed_body_never_reaches_a_schema() -> None:
    """The reason is then the malformed body."""

    class Untouchable:
        def violation(self, data: object, *, size_bytes: int) -> Violation:  # noqa: ARG002
            """Fail the test."""
            raise AssertionError(data)

    known: dict[str, EventSchema] = {"note": Untouchable()}
    rejection = parse(b"{", known=EventSchemas(known, refuses_unknown=True))

    assert isinstance(rejection, Rejection)
    assert rejection.reason == DeadLetterReason.MALFORMED_BODY
