"""`bridge revoke` and `bridge revocations`: refuse tokens of a user, list what is refused."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from bridge.cli.operator_client import (
    OperatorOptions,
    ask_once,
    ask_pages,
    print_json,
    segment,
)
from bridge.cli.options import (
    Cursor,
    Limit,
    OfUser,
    parse_seconds,
    with_option_groups,
)
from bridge.cli.tables import local_time, print_note, print_table, time_zone, zoned_time
from bridge.core.contracts.control import RevokeRequest
from bridge.core.contracts.operator.operation import Page
from bridge.core.contracts.operator.revocations import RevocationFacts
from bridge.errors import ConfigError


@with_option_groups
def revoke(
    user: Annotated[str, typer.Argument(help="The user whose tokens to revoke.")],
    duration: Annotated[
        str,
        typer.Option(
            "--for",
            help="How long, such as 1h: at least as long as the tokens are valid.",
        ),
    ],
    issued_before: Annotated[
        str | None,
        typer.Option(
            "--issued-before",
            help="Only tokens issued before this time, such as 2026-01-31T12:00, or `now`. "
            "Tokens without `iat` are refused, too.",
        ),
    ] = None,
    jti: Annotated[
        str | None, typer.Option("--jti", help="Only the token with this id.")
    ] = None,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Refuse tokens of a user on every bridge, and close the windows that use them.

    Without --issued-before and --jti every token is refused, also a new one. The page receives the code `revoked`. The inbox store
    remembers it. Exit status: 0 done, 1 refused, 3 the bridge or its store cannot be reached.

    Examples:

        bridge revoke ann --issued-before now --for 1h

        bridge revoke ann --jti 7f0c1d --for 1h

        bridge revoke ann --for 30d

    """
    if issued_before is not None and jti is not None:
        raise ConfigError(["--issued-before, --jti: give one of them at most"])
    duration_s = parse_seconds(duration, option="--for", allows_zero=False)
    try:
        until = _rfc3339(time.time() + duration_s)
    except (ValueError, OverflowError) as exc:
        raise ConfigError([f"--for: {exc}"]) from exc
    request = RevokeRequest(
        until=until, issued_before=_instant(issued_before), jti=jti or None
    )
    path = f"/api/users/{segment(user)}/revoke"
    done = ask_once(operator, path, RevocationFacts, method="POST", body=request)
    if operator.json:
        print_json(done)
    print_note(f"revoked until {zoned_time(done.until_s)}: {_condition(done)}")


@with_option_groups
def revocations(
    user: OfUser = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Show the revocations that are in force.

    Exit status: 0 shown, 1 refused, 3 the bridge cannot be reached.

    Examples:

        bridge revocations --user ann

        bridge revocations --json | jq -r '.items[].user'

    """
    page = ask_pages(
        operator,
        "/api/revocations",
        Page[RevocationFacts],
        query={"user": user},
        limit=limit,
        cursor=cursor,
    )
    if operator.json:
        print_json(page)
        return
    zone = time_zone()
    print_table(
        ("user", "tokens", f"made ({zone})", f"until ({zone})"),
        [
            (each.user, _condition(each), *map(local_time, (each.made_s, each.until_s)))
            for each in page.items
        ],
        empty="no revocations" + (f" for {user}" if user else ""),
    )
    if page.next is not None:
        print_note(f"there are more than these {len(page.items)}: --limit shows more")


def _condition(facts: RevocationFacts) -> str:
    if facts.jti is not None:
        return f"with jti {facts.jti}"
    if facts.issued_before_s is not None:
        return f"issued before {zoned_time(facts.issued_before_s)}"
    return "all tokens"


def _instant(text: str | None) -> str | None:
    if text is None:
        return None
    if text == "now":
        return _rfc3339(time.time())
    try:
        return _rfc3339(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError) as exc:
        problem = f"--issued-before: {text!r} is neither `now` nor a time like 2026-01-31T12:00"
        raise ConfigError([problem]) from exc


def _rfc3339(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()
