"""Lists in pages: a cursor is opaque to clients, and is validated when it comes back."""

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import TypeVar

import orjson

from bridge.http.api.endpoint import ApiProblem

ItemT = TypeVar("ItemT")


def render_cursor(value: object) -> str:
    """Return `value`, which is any JSON, as a cursor."""
    return base64.urlsafe_b64encode(orjson.dumps(value)).decode().rstrip("=")


def parse_cursor(text: str) -> object:
    """
    Return the value of a cursor. The caller checks its type, since anyone can make one.

    Raises:
        ApiProblem: 422, if `text` is not a cursor.

    """
    try:
        raw = base64.b64decode(
            text + "=" * (-len(text) % 4), altchars=b"-_", validate=True
        )
        value: object = orjson.loads(raw)
    except (ValueError, binascii.Error) as exc:
        raise bad_cursor() from exc
    return value


def parse_text_cursor(cursor: str | None) -> str | None:
    """
    Return the text of a cursor; ``None`` if there is no cursor.

    Raises:
        ApiProblem: 422, if `cursor` is not a cursor with a text.

    """
    value = None if cursor is None else parse_cursor(cursor)
    if cursor is not None and not isinstance(value, str):
        raise bad_cursor()
    return value if isinstance(value, str) else None


def bad_cursor() -> ApiProblem:
    """Return the refusal of a cursor that no page of this list has given."""
    return ApiProblem(
        422, "cursor is not one that a page gave as next", pointer="cursor"
    )


def page_by_key(
    items: Iterable[ItemT],
    *,
    key: Callable[[ItemT], str],
    after: str | None,
    limit: int,
) -> tuple[list[ItemT], str | None]:
    """
    Return one page of `items`, which are sorted by `key`, and the cursor of the next page.

    The cursor is the last key, so it stays valid when items are added or removed.

    Raises:
        ApiProblem: 422, if `after` is not a cursor of such a list.

    """
    last = parse_text_cursor(after)
    page: list[ItemT] = []
    for item in items:
        if last is not None and key(item) <= last:
            continue
        if len(page) == limit:
            return page, render_cursor(key(page[-1]))
        page.append(item)
    return page, None
