"""`/api/users`: who is online, what waits for whom, and closing somebody's windows."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from bridge.core.contracts.base import CONTROL_CHARACTER, Contract, listed
from bridge.core.contracts.operator.operation import (
    NoBody,
    NoQuery,
    Operation,
    Page,
    PageQuery,
    QueryFlag,
)
from bridge.core.message import USER_MAX_BYTES

USER_PARAMETER: Final = {
    "description": "The user, percent-encoded as UTF-8, slashes and dots too. A user that "
    "is `.` or `..` may be written with `%7F` behind it, for programs that take it for a "
    "folder.",
    "type": "string",
    "minLength": 1,
    "maxLength": USER_MAX_BYTES,
    "not": CONTROL_CHARACTER,
}


class UsersQuery(PageQuery):
    """Which users are wanted."""

    q: str | SkipJsonSchema[None] = Field(
        None,
        max_length=USER_MAX_BYTES,
        description="How their names begin; every character stands for itself.",
    )
    online: QueryFlag = Field(
        default=False,
        description="Only those with a window connected, to any bridge that shares our "
        "inboxes.",
    )


class Told(Contract):
    """Whose word an answer is, where several bridges share their users."""

    bridges: int = Field(
        description="From how many bridges it comes, this one included."
    )
    silent: int | None = Field(
        description="How many others were asked and did not answer in time; null if it is "
        "not known how many there are."
    )


class UserInboxFacts(Contract):
    """What the inbox of a user holds; all null if the store is away."""

    user: str = Field(description="Who.")
    depth: int | None = Field(description="Messages that are kept, delivered or not.")
    waiting: int | None = Field(description="How many of them were not delivered yet.")
    delivered: int | None = Field(
        description="The delivered mark: the user has had everything up to this offset."
    )
    last: int | None = Field(
        description="Offset of the newest message ever stored; 0 if there was none."
    )
    last_connect_s: float | None = Field(
        description="When a window of the user was let in last; null if none was since "
        "the bridges started. In a list, other bridges tell it of those who are connected."
    )


class UserFacts(UserInboxFacts):
    """One user in a list."""

    windows: int = Field(description="How many are connected, to whichever bridge.")


class UsersPage(Page[UserFacts], Told):
    """A part of the list of users."""


class WindowFacts(Contract):
    """One window."""

    bridge: str = Field(
        description="Its bridge, by `BRIDGE_NAME`; empty if that has no name."
    )
    sid_short: str = Field(description="The beginning of its socket.io id.")
    transport: Literal["websocket", "polling"] = Field(description="As it is now.")
    address: str = Field(description="Where the page is, as far as it can be believed.")
    connected_s: float = Field(description="Since when it is there.")
    offset: int = Field(
        description="Newest message that was written to it, or that it had before."
    )
    acks: Literal["auto", "manual"] = Field(
        description="Whether only its `ack` counts as delivered."
    )
    live: bool = Field(
        description="False while it still reads what was there before it came."
    )
    waiting_bytes: int = Field(
        description="What was sent to it and that it has not read yet."
    )


class UserDetail(UserInboxFacts, Told):
    """One user with every window."""

    windows: list[WindowFacts] = Field(description="Oldest first.")


class Kicked(Told):
    """What a kick did."""

    kicked: int = Field(description="How many windows were closed.")


class MessageState(StrEnum):
    """How far a message in an inbox has come."""

    DELIVERED = "delivered"
    WAITING = "waiting"
    EXPIRED = "expired"


class InboxQuery(PageQuery):
    """Which part of an inbox is wanted."""

    data: QueryFlag = Field(
        default=False,
        description="Whether messages come with their data. A page then ends after 1 MiB.",
    )


class InboxMessage(Contract):
    """One message in an inbox."""

    position: str = Field(description="As pages know it.")
    offset: int = Field(description="Its place in the user's inbox, from 1.")
    message_id: str | None = Field(description="The producer's id.")
    event: str = Field(description="Under which a page receives it.")
    taken_s: float = Field(description="When the bridge took it from the broker.")
    expires_s: float | None = Field(description="When it expires; null = never.")
    bytes: int = Field(description="Size of its data.")
    state: Annotated[MessageState, listed(MessageState)] = Field(
        description="`expired`: its time was over before it was delivered."
    )
    data: str | None = Field(
        description="The JSON text that a page parses; null unless it was asked for."
    )


LIST_USERS: Final = Operation(
    method="GET",
    path="/api/users",
    name="listUsers",
    summary="Users by name: who is online, what waits for whom.",
    answers={200: UsersPage},
    query=UsersQuery,
    body=NoBody,
    problems=(503,),
)
GET_USER: Final = Operation(
    method="GET",
    path="/api/users/{user}",
    name="getUser",
    summary="One user with every window. 404: no window, and never a message.",
    answers={200: UserDetail},
    query=NoQuery,
    body=NoBody,
    path_parameters={"user": USER_PARAMETER},
    problems=(404,),
)
KICK_USER: Final = Operation(
    method="POST",
    path="/api/users/{user}/kick",
    name="kickUser",
    summary="Close all windows of a user, on every bridge; they are told `kicked`.",
    answers={200: Kicked},
    query=NoQuery,
    body=NoBody,
    path_parameters={"user": USER_PARAMETER},
)
GET_INBOX: Final = Operation(
    method="GET",
    path="/api/users/{user}/inbox",
    name="getInbox",
    summary="The messages that are kept for a user, newest first.",
    answers={200: Page[InboxMessage]},
    query=InboxQuery,
    body=NoBody,
    path_parameters={"user": USER_PARAMETER},
    problems=(404, 503),
)
OPERATIONS: Final = (LIST_USERS, GET_USER, KICK_USER, GET_INBOX)
