"""`bridge users`, `bridge kick`: who is online, what waits for whom, closing windows."""

from typing import Annotated

import typer

from bridge.cli.operator_client import (
    ask_once,
    operator_address,
    post_once,
    print_json,
    segment,
)
from bridge.cli.options import (
    AsJson,
    ConfigFile,
    Cursor,
    DryRun,
    Limit,
    OperatorToken,
    OperatorUrl,
)
from bridge.cli.pages import gather
from bridge.cli.tables import count, local_time, print_note, print_table
from bridge.core.contracts.operator.users import (
    Kicked,
    Told,
    UserDetail,
    UsersPage,
)

_NUMBERS = frozenset({"windows", "depth", "waiting", "delivered", "offset", "unread"})


def users(
    user: Annotated[
        str | None, typer.Argument(help="Show this one, with each window.")
    ] = None,
    begins: Annotated[
        str | None, typer.Option("--begins", help="Only names that begin so.")
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Only users with a window connected.")
    ] = False,
    limit: Limit = 100,
    cursor: Cursor = None,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Show users: windows, depth of the inbox, what waits, the last connect.

    Exit status: 0 shown, 1 no such user, 3 the bridge cannot be reached.

    Examples:

        bridge users --online

        bridge users --begins team-a. --limit 1000

        bridge users ann

        bridge users --json | jq -r '.items[] | select(.waiting > 100).user'

    """
    address = operator_address(url, token, config_file)
    if user is not None:
        detail = ask_once(address, f"/api/users/{segment(user)}", UserDetail)
        if json:
            print_json(detail)
        else:
            _print_detail(detail)
        return
    page = gather(
        address,
        "/api/users",
        UsersPage,
        query={"q": begins, "online": online},
        limit=limit,
        cursor=cursor,
    )
    if json:
        print_json(page)
        return
    print_table(
        ("user", "windows", "depth", "waiting", "delivered", "last connect"),
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
    )
    _say_who(page)
    if page.next is not None:
        print_note(f"there are more than these {len(page.items)}: --limit shows more")


def _print_detail(detail: UserDetail) -> None:
    print_note(
        f"{detail.user}: {count(detail.depth)} messages kept, "
        f"{count(detail.waiting)} waiting, delivered up to offset "
        f"{count(detail.delivered)}, last connect {local_time(detail.last_connect_s)}"
    )
    print_table(
        (
            "window",
            "bridge",
            "transport",
            "address",
            "since",
            "offset",
            "acks",
            "unread",
        ),
        [
            (
                window.sid_short,
                window.bridge,
                window.transport,
                window.address,
                local_time(window.connected_s),
                str(window.offset),
                window.acks if window.live else f"{window.acks}, catching up",
                f"{window.waiting_bytes} B",
            )
            for window in detail.windows
        ],
        right=_NUMBERS,
    )
    _say_who(detail)


def kick(
    user: Annotated[str, typer.Argument(help="Whose windows to close.")],
    dry_run: DryRun = False,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Close all windows of a user, on every bridge that shares its inbox. They are told `kicked`.

    The stock client does not come back by itself after that; a page that is loaded anew
    does, and its messages wait for it. Exit status: 0 done, 1 refused, 3 the bridge
    cannot be reached.

    Examples:

        bridge kick ann --dry-run

        bridge kick ann

    """
    address = operator_address(url, token, config_file)
    path = f"/api/users/{segment(user)}"
    if dry_run:
        seen = ask_once(address, path, UserDetail)
        done = Kicked(
            kicked=len(seen.windows), bridges=seen.bridges, silent=seen.silent
        )
        words = "would be closed"
    else:
        done, words = post_once(address, f"{path}/kick", Kicked), "closed"
    if json:
        print_json(done)
    noun = "window" if done.kicked == 1 else "windows"
    print_note(f"{done.kicked} {noun} of {user} {words}")
    _say_who(done)


def _say_who(told: Told) -> None:
    """Say whose word it is, if there are more bridges than the one that was asked."""
    if told.silent is None:
        print_note(
            "the other bridges could not be asked: their store is away. This is one bridge alone"
        )
    elif told.silent:
        print_note(f"from {told.bridges} bridges; {told.silent} did not answer")
    elif told.bridges > 1:
        print_note(f"from {told.bridges} bridges")
