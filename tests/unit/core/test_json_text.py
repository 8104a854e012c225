"""JSON with lone surrogates: valid by RFC 8259, refused by orjson, sent by JavaScript."""

import json
from time import process_time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.json_text import parse_json, parse_json_exactly, render_json


@pytest.mark.parametrize(
    ("text", "readable", "exact"),
    [
        (r'{"t":"cut \ud83d"}', {"t": "cut \ufffd"}, {"t": "cut \ud83d"}),
        (r'"\uDE00 rest"', "\ufffd rest", "\ude00 rest"),
        (r'{"\ud800":[1]}', {"\ufffd": [1]}, {"\ud800": [1]}),
        (r'"\ud83d\ude00 \ud83d"', "😀 \ufffd", "😀 \ud83d"),
        (r'"\ud83d\ud83d\ude00\ude00"', "\ufffd😀\ufffd", "\ud83d😀\ude00"),
        (r'"\\ud83d \ud83d"', r"\ud83d " + "\ufffd", r"\ud83d " + "\ud83d"),
        (r'"\ud83d\\ude00"', "\ufffd" + r"\ude00", "\ud83d" + r"\ude00"),
        (r'"\\\ud83d"', "\\\ufffd", "\\\ud83d"),
    ],
)
def test_a_lone_surrogate_is_valid_json(
    text: str, readable: object, exact: object
) -> None:
    """`JSON.stringify` writes half an emoji as an escape; pairs stay what they are."""
    assert parse_json(text) == parse_json(text.encode()) == readable
    assert parse_json_exactly(text) == parse_json_exactly(text.encode()) == exact
    assert json.loads(render_json(exact)) == exact


@pytest.mark.parametrize(
    "text",
    [
        r'"\ud83d',
        r'"\ud83d" x',
        r'["\ud83d", NaN]',
        '"\\ud83d \n"',
        r'"\ud83"',
        r"\ud83d",
        '"\\ud83d \0\0"',
        r'"\ud83d" ' + "[" * 2000,
        '["\\ud83d"' + ",[" * 990 + "]" * 991,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_everything_else_stays_as_strict_as_without_it(text: str) -> None:
    """The second look at the text must not accept what the first one refuses."""
    with pytest.raises(orjson.JSONDecodeError):
        parse_json_exactly(text)


def test_escaped_backslashes_cost_no_more_than_other_text() -> None:
    """Any producer can fill a body with them, and any page a packet."""

    def best_s(filling: bytes) -> float:
        text = b'{"text":"' + filling * (200_000 // len(filling)) + rb'\ud83d"}'
        took_s = []
        for _ in range(5):
            began_s = process_time()
            parse_json(text)
            took_s.append(process_time() - began_s)
        return min(took_s)

    assert best_s(rb"\\") < 8 * best_s(rb"\n")


def test_data_that_is_too_deep_cannot_be_written_with_or_without_surrogates() -> None:
    """One error for both libraries."""
    nested: object = "\ud800"
    for _ in range(2000):
        nested = [nested]

    with pytest.raises(orjson.JSONEncodeError):
        render_json(nested)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_any_string_of_javascript_passes_unchanged(value: object) -> None:
    """`st.characters()` includes surrogates."""
    text = json.dumps(value)

    parse_json(text)
    assert json.loads(render_json(json.loads(text))) == json.loads(text)
    assert render_json(parse_json(text)) == orjson.dumps(parse_json(text))
