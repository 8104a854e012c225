"""
Show the inbox of a user, or migrate all inboxes to another store.

`bridge inbox USER` is short for `bridge inbox show USER`, except for users with the names
`show` and `migrate`. Exit status: 0 done, 1 no such user or refused, 2 wrong use, 3 the
bridge cannot be reached.

Examples:

    bridge inbox ann

    bridge inbox show --help

    bridge inbox migrate --help

"""

from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

from bridge.cli.inbox_migration import migrate_inboxes
from bridge.cli.operator_client import OperatorOptions, ask_pages, print_json, segment
from bridge.cli.options import Cursor, Limit, with_option_groups
from bridge.cli.tables import (
    local_time,
    print_note,
    print_table,
    short_time,
    time_zone,
)
from bridge.core.contracts.operator.operation import Page
from bridge.core.contracts.operator.users import InboxMessage

# A terminal of 80 columns has room for one line for each message without two of them.
_WIDE: Final = 110
_TAKEN: Final = "taken ({zone})"
_TAKEN_SHORT: Final = "at ({zone})"
_NARROW: Final = ("offset", "state", _TAKEN_SHORT, "event", "message id")
_ALL: Final = ("offset", "state", _TAKEN, "expires", "event", "bytes", "message id")
_SHOW: Final = "show"
_HELP: Final = "--help"


class _UserOrCommand(TyperGroup):
    """Parses `bridge inbox ann`, the older form, as `bridge inbox show ann`."""

    # The type of `ctx` depends on the version of typer, which may vendor click.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - see above
        if args and args[0] not in {*self.commands, _HELP}:
            args = [_SHOW, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_UserOrCommand,
    help=__doc__,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command("migrate")(migrate_inboxes)


@app.command(_SHOW)
@with_option_groups
def inbox(
    user: Annotated[str, typer.Argument(help="The user.")],
    data: Annotated[
        bool, typer.Option("--data", help="Show the messages' data too.")
    ] = False,
    retained: Annotated[
        bool,
        typer.Option(
            "--retained",
            help="Only the newest message of each retained key, oldest first.",
        ),
    ] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Show the messages in the inbox of a user, newest first.

    This changes nothing: neither the delivered mark nor what a window will receive. Exit
    status: 0 shown, 1 no such user, 3 the bridge cannot be reached.

    Examples:

        bridge inbox ann

        bridge inbox ann --data --limit 1

        bridge inbox ann --retained --data

        bridge inbox ann --json | jq '.items[] | select(.state == "waiting")'

    """
    page = ask_pages(
        operator,
        f"/api/users/{segment(user)}/inbox",
        Page[InboxMessage],
        query={"data": data, "retained": retained},
        limit=limit,
        cursor=cursor,
    )
    if operator.json:
        print_json(page)
        return
    is_narrow = Console().width < _WIDE
    columns = list(_NARROW if is_narrow else _ALL)
    if is_narrow and retained:
        columns[-1] = "key"
    elif any(message.key for message in page.items) and not is_narrow:
        columns.insert(-1, "key")
    print_table(
        [name.format(zone=time_zone()) for name in columns] + ["data"] * data,
        [
            [_cells(message)[name] for name in columns] + [message.data or ""] * data
            for message in page.items
        ],
        right=frozenset({"offset", "bytes"}),
        empty=f"no retained messages for {user}"
        if retained
        else f"no messages in the inbox of {user}",
    )
    if is_narrow and any(message.expires_s for message in page.items):
        print_note("a wider terminal, or --json, shows when messages expire")
    if page.next is not None:
        print_note(f"there are more than these {len(page.items)}: --limit shows more")


def _cells(message: InboxMessage) -> dict[str, str]:
    return {
        "offset": str(message.offset),
        "state": message.state,
        _TAKEN: local_time(message.taken_s),
        _TAKEN_SHORT: short_time(message.taken_s),
        "expires": local_time(message.expires_s),
        "event": message.event,
        "bytes": str(message.bytes),
        "key": message.key or "-",
        "message id": message.message_id or "-",
    }
