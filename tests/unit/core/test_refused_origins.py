"""Refused origins are listed by name, in bounded memory."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.refused_origins import KEPT, RefusedOrigin, RefusedOrigins


def test_each_origin_is_listed_once_with_its_count_and_last_time() -> None:
    """The origin that was refused last comes first."""
    refused = RefusedOrigins()
    for at_s, origin in enumerate(("https://a.example", None, "https://a.example")):
        refused.note(origin, at_s)

    assert refused.newest_first() == [
        RefusedOrigin("https://a.example", 2, 2),
        RefusedOrigin(None, 1, 1),
    ]


def test_forged_origins_replace_only_the_oldest_ones() -> None:
    """An origin that is refused repeatedly stays in the list."""
    refused = RefusedOrigins()
    for number in range(1000):
        refused.note(f"https://{number}.example", number)
        refused.note("https://ours.example", number)

    found = refused.newest_first()
    assert len(found) == KEPT
    assert found[0] == RefusedOrigin("https://ours.example", 1000, 999)


@given(st.binary())
def test_arbitrary_header_bytes_become_short_text_for_json(raw: bytes) -> None:
    """The HTTP parser passes bytes that are not UTF-8 as surrogates."""
    refused = RefusedOrigins()
    refused.note(raw.decode(errors="surrogateescape") * 50, 0)

    [found] = refused.newest_first()
    assert found.origin is not None
    assert len(found.origin) <= 200
    assert orjson.dumps(found.origin)
