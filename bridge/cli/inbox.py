"""
Show the inbox of a user, or migrate all inboxes to another store.

`bridge inbox USER` is short for `bridge inbox show USER`, except for users with the names
`show` and `carry`. Exit status: 0 done, 1 no such user or refused, 2 wrong use, 3 the
bridge cannot be reached.

Examples:

    bridge inbox ann

    bridge inbox show --help

    bridge inbox carry --help

"""

from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from bridge.cli.inbox_migration import carry_inboxes
from bridge.cli.operator_client import OperatorOptions, ask_pages, print_json, segment
from bridge.cli.options import Cursor, Limit, with_option_groups
from bridge.cli.tables import local_time, print_note, print_table
from bridge.core.contracts.operator.operation import Page
from bridge.core.contracts.operator.users import InboxMessage

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
app.command("carry")(carry_inboxes)


@app.command(_SHOW)
@with_option_groups
def inbox(
    user: Annotated[str, typer.Argument(help="The user.")],
    data: Annotated[
        bool, typer.Option("--data", help="Show the messages' data too.")
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

        bridge inbox ann --json | jq '.items[] | select(.state == "waiting")'

    """
    page = ask_pages(
        operator,
        f"/api/users/{segment(user)}/inbox",
        Page[InboxMessage],
        query={"data": data},
        limit=limit,
        cursor=cursor,
    )
    if operator.json:
        print_json(page)
        return
    columns = ["offset", "state", "taken", "expires", "event", "bytes", "message id"]
    print_table(
        [*columns, "data"] if data else columns,
        [_row(message, with_data=data) for message in page.items],
        right=frozenset({"offset", "bytes"}),
    )
    if page.next is not None:
        print_note(f"there are more than these {len(page.items)}: --limit shows more")


def _row(message: InboxMessage, *, with_data: bool) -> list[str]:
    row = [
        str(message.offset),
        message.state,
        local_time(message.taken_s),
        local_time(message.expires_s),
        message.event,
        str(message.bytes),
        message.message_id or "-",
    ]
    return [*row, message.data or ""] if with_data else row
