"""Lists in parts: a cursor is opaque to clients, and text that we check when it comes back."""

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import TypeVar

import orjson

from bridge.http.api.endpoint import ApiProblem

ItemT = TypeVar("ItemT")


def render_cursor(value: object) -> str:
    """Return `value`, any JSON, as a cursor."""
    return base64.urlsafe_b64encode(orjson.dumps(value)).decode().rstrip("=")


def parse_cursor(text: str) -> object:
    """
    Return what `render_cursor` was given. The caller checks its form: anybody can make one.

    Raises:
        ApiProblem: 422, if it is no cursor.

    """
    try:
        raw = base64.b64decode(
            text + "=" * (-len(text) % 4), altchars=b"-_", validate=True
        )
        value: object = orjson.loads(raw)
    except (ValueError, binascii.Error) as exc:
        raise bad_cursor() from exc
    return value


def bad_cursor() -> ApiProblem:
    """Return the refusal of a cursor that is none of ours."""
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
    Return one page of `items`, which are sorted by `key`, and the cursor of the next.

    The cursor is the last key, so it holds when items come and go meanwhile.

    Raises:
        ApiProblem: 422, if `after` is no cursor of such a list.

    """
    last: object = None
    if after is not None:
        last = parse_cursor(after)
        if not isinstance(last, str):
            raise bad_cursor()
    page: list[ItemT] = []
    for item in items:
        if isinstance(last, str) and key(item) <= last:
            continue
        if len(page) == limit:
            return page, render_cursor(key(page[-1]))
        page.append(item)
    return page, None
