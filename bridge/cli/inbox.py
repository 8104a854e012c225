"""`bridge inbox`: what is kept for one user, and how far it has come."""

from typing import Annotated

import typer

from bridge.cli.operator_client import (
    operator_address,
    print_json,
    segment,
)
from bridge.cli.options import (
    AsJson,
    ConfigFile,
    Cursor,
    Limit,
    OperatorToken,
    OperatorUrl,
)
from bridge.cli.pages import gather
from bridge.cli.tables import moment, print_table, say
from bridge.core.contracts.operator.operation import Page
from bridge.core.contracts.operator.users import InboxMessage


def inbox(
    user: Annotated[str, typer.Argument(help="Whose inbox.")],
    data: Annotated[
        bool, typer.Option("--data", help="Show the messages' data too.")
    ] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Show the messages that are kept for a user, newest first.

    Looking changes nothing: not the delivered mark, not what a window will get. Exit
    status: 0 shown, 1 no such user, 3 the bridge cannot be reached.

    Examples:
        bridge inbox ann

        bridge inbox ann --data --limit 1

        bridge inbox ann --json | jq '.items[] | select(.state == "waiting")'

    """
    page = gather(
        operator_address(url, token, config_file),
        f"/api/users/{segment(user)}/inbox",
        Page[InboxMessage],
        query={"data": data},
        limit=limit,
        cursor=cursor,
    )
    if json:
        print_json(page)
        return
    columns = ["offset", "state", "taken", "expires", "event", "bytes", "message id"]
    print_table(
        [*columns, "data"] if data else columns,
        [_row(message, with_data=data) for message in page.items],
        right=frozenset({"offset", "bytes"}),
    )
    if page.next is not None:
        say(f"there are more than these {len(page.items)}: --limit shows more")


def _row(message: InboxMessage, *, with_data: bool) -> list[str]:
    row = [
        str(message.offset),
        message.state,
        moment(message.taken_s),
        moment(message.expires_s),
        message.event,
        str(message.bytes),
        message.message_id or "-",
    ]
    return [*row, message.data or ""] if with_data else row
