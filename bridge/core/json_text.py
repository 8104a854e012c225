"""
JSON whose strings may contain lone surrogates, such as half an emoji.

RFC 8259 allows the escape of a lone surrogate, and JavaScript's `JSON.stringify` writes it;
orjson refuses it. The functions are as strict as orjson in everything else.
"""

import json
import re
from typing import Final

import orjson

_HIGH: Final = rb"\\u[dD][89aAbB][0-9a-fA-F]{2}"
_LOW: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE: Final = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_ESCAPED_BACKSLASH: Final = rb"\\"
# Stands for it while surrogates are replaced. JSON contains no such byte.
_HIDDEN: Final = b"\0\0"


def parse_json(text: bytes | str) -> object:
    """
    Parse `text`; in the value U+FFFD stands for each lone surrogate.

    Such a value can be encoded and validated everywhere.

    Raises:
        orjson.JSONDecodeError: If `text` is not valid JSON.

    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        if b"\0" in raw:
            raise
        # Not split at each backslash: a body of nothing else would take 100 ms.
        hidden = raw.replace(_ESCAPED_BACKSLASH, _HIDDEN)
        # The replacement is as long as the escape: positions in errors are right.
        replaced = _LONE_SURROGATE.sub(rb"\\ufffd", hidden)
        replaced = replaced.replace(_HIDDEN, _ESCAPED_BACKSLASH)
        if replaced == raw:
            raise
    return orjson.loads(replaced)


def parse_json_exactly(text: bytes | str) -> object:
    """
    Parse `text`; lone surrogates stay in the strings, which only `render_json` can write.

    Raises:
        orjson.JSONDecodeError: If `text` is not valid JSON, or is nested about 900 deep or
            more and has a lone surrogate.

    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        parse_json(text)  # everything but the surrogates is valid
        try:
            return json.loads(text)
        except RecursionError:
            raise exc from None


def render_json(value: object) -> bytes:
    """
    Return `value`, which was parsed from JSON, as JSON; lone surrogates become escapes.

    Raises:
        orjson.JSONEncodeError: If `value` is nested too deep.

    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as exc:
        if "Recursion" in str(exc):
            raise
        try:
            return json.dumps(value, separators=(",", ":")).encode()
        except RecursionError:
            raise exc from None
