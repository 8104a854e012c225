"""`bridge users` and `bridge kick`: list users, close the windows of a user."""

from typing import Annotated

import typer

from bridge.cli.operator_client import (
    OperatorOptions,
    ask_once,
    ask_pages,
    print_json,
    segment,
)
from bridge.cli.options import Cursor, DryRun, Limit, with_option_groups
from bridge.cli.tables import (
    count,
    local_time,
    print_note,
    print_table,
    short_time,
    time_zone,
    zoned_time,
)
from bridge.core.contracts.operator.users import (
    CoverageFields,
    Kicked,
    PresenceFacts,
    UserDetail,
    UsersPage,
)
from bridge.errors import ConfigError

_NUMBERS = frozenset({"windows", "kept", "waiting", "delivered to", "offset", "unread"})


@with_option_groups
def users(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="USER",
            help="Show this user with all windows; with --online, whether each of these "
            "users is connected.",
        ),
    ] = None,
    begins: Annotated[
        str | None,
        typer.Option("--begins", help="Only users whose names begin with this."),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Only users with a connected window.")
    ] = False,
    limit: Limit = 100,
    cursor: Cursor = None,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Show users with their windows, inboxes and last connects.

    A list has the users with a window or an inbox, which begins with their first message.
    `kept` counts the messages in the inbox, which holds the newest of the user's messages,
    at most BRIDGE_INBOX_MAX_MESSAGES. `delivered to` is the offset of the last delivered
    message; offsets count all messages of the user, deleted ones too.

    Exit status: 0 shown, 1 no such user, 3 the bridge cannot be reached.

    Examples:

        bridge users --online

        bridge users --begins team-a. --limit 1000

        bridge users ann

        bridge users ann bob --online

        bridge users --json | jq -r '.items[] | select(.waiting > 100).user'

    """
    if names and online:
        _show_presence(operator, names)
        return
    if names:
        if len(names) > 1:
            raise ConfigError(["USER: several users need --online"])
        detail = ask_once(operator, f"/api/users/{segment(names[0])}", UserDetail)
        if operator.json:
            print_json(detail)
        else:
            print_user(detail)
        return
    page = ask_pages(
        operator,
        "/api/users",
        UsersPage,
        query={"q": begins, "online": online},
        limit=limit,
        cursor=cursor,
    )
    if operator.json:
        print_json(page)
        return
    connect = f"last connect ({time_zone()})"
    print_table(
        ("user", "windows", "kept", "waiting", "delivered to", connect),
        [
            (
                each.user,
                str(each.windows),
                count(each.depth),
                count(each.waiting),
                count(each.delivered),
                local_time(each.last_connect_s),
            )
            for each in page.items
        ],
        right=_NUMBERS,
        folded=frozenset({"user"}),
        empty="no users"
        + (" are online" if online else "")
        + (f" with a name that begins with {begins}" if begins else ""),
    )
    _say_coverage(page)
    if page.next is not None:
        print_note(f"there are more than these {len(page.items)}: --limit shows more")


def _show_presence(operator: OperatorOptions, names: list[str]) -> None:
    query = {"user": names}
    found = ask_once(operator, "/api/presence", PresenceFacts, query=query)
    if operator.json:
        print_json(found)
        return
    print_table(
        ("user", "online", "windows"),
        [
            (each.user, "yes" if each.online else "no", str(each.windows))
            for each in found.items
        ],
        right=_NUMBERS,
        folded=frozenset({"user"}),
    )
    _say_coverage(found)


def print_user(detail: UserDetail) -> None:
    """Print one user with all windows; only the last column is folded."""
    print_note(
        f"{detail.user}: {count(detail.depth)} kept, "
        f"{count(detail.waiting)} waiting, delivered up to offset "
        f"{count(detail.delivered)}, last connect {zoned_time(detail.last_connect_s)}"
    )
    print_table(
        (
            "window",
            "transport",
            f"since ({time_zone()})",
            "offset",
            "acks",
            "unread",
            "from",
        ),
        [
            (
                window.sid_short,
                window.transport,
                short_time(window.connected_s),
                str(window.offset),
                window.acks,
                f"{window.waiting_bytes} B",
                window.address
                + (f" at {window.bridge}" if window.bridge else "")
                + ("" if window.live else ", catching up"),
            )
            for window in detail.windows
        ],
        right=_NUMBERS,
        folded=frozenset({"from"}),
        empty="no window is connected",
    )
    _say_coverage(detail)


@with_option_groups
def kick(
    user: Annotated[str, typer.Argument(help="The user whose windows to close.")],
    dry_run: DryRun = False,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Close all windows of a user, on every bridge.

    The page receives the code `kicked`, and the stock client does not reconnect after that. A reloaded page does, and receives the
    messages that it missed. Exit status: 0 done, 1 refused, 3 the bridge cannot be reached.

    Examples:

        bridge kick ann --dry-run

        bridge kick ann

    """
    path = f"/api/users/{segment(user)}"
    if dry_run:
        found = ask_once(operator, path, UserDetail)
        done = Kicked(
            kicked=len(found.windows), bridges=found.bridges, silent=found.silent
        )
        words = "would be closed"
    else:
        done, words = (
            ask_once(operator, f"{path}/kick", Kicked, method="POST"),
            "closed",
        )
    if operator.json:
        print_json(done)
    noun = "window" if done.kicked == 1 else "windows"
    print_note(f"{done.kicked} {noun} of {user} {words}")
    _say_coverage(done)


def _say_coverage(coverage: CoverageFields) -> None:
    """Print which bridges the answer covers, unless it is only the one that was asked."""
    if coverage.silent is None:
        print_note(
            "the other bridges could not be asked, because the store is unavailable: "
            "this answer covers one bridge"
        )
    elif coverage.silent:
        print_note(f"from {coverage.bridges} bridges; {coverage.silent} did not answer")
    elif coverage.bridges > 1:
        print_note(f"from {coverage.bridges} bridges")
