"""`/api/users`: list users, show their windows and inboxes, close their windows."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from bridge.core.contracts.base import (
    CONTROL_CHARACTER,
    Absent,
    Contract,
    User,
    listed,
)
from bridge.core.contracts.operator.operation import (
    Operation,
    Page,
    PageQuery,
    Query,
    QueryFlag,
)
from bridge.core.message import USER_MAX_BYTES
from bridge.enums import PresenceChange

# The users whose presence one request may ask for.
ASKED_USERS_MAX: Final = 1000
PRESENCE_STEPS_MAX: Final = 50
USER_PARAMETER: Final = {
    "description": "The user, percent-encoded as UTF-8, slashes and dots too. The users `.` "
    "and `..` may be followed by `%7F`, for HTTP clients that would resolve them as path "
    "segments.",
    "type": "string",
    "minLength": 1,
    "maxLength": USER_MAX_BYTES,
    "not": CONTROL_CHARACTER,
}


class UsersQuery(PageQuery):
    """The conditions for the listed users, and the page."""

    q: str | Absent = Field(
        None,
        max_length=USER_MAX_BYTES,
        description="The beginning of their names, taken literally.",
    )
    online: QueryFlag = Field(
        default=False,
        description="Only users with a connected window, on any bridge that shares the "
        "inboxes.",
    )


def _check_asked_users(users: object) -> object:
    if isinstance(users, list) and len(users) > ASKED_USERS_MAX:
        message = (
            f"is given {len(users):,} times, allowed are {ASKED_USERS_MAX:,}: "
            "ask in several requests"
        )
        raise ValueError(message)
    return users


class PresenceQuery(Query):
    """The users to look up."""

    user: Annotated[list[User], BeforeValidator(_check_asked_users)] = Field(
        min_length=1,
        max_length=ASKED_USERS_MAX,
        description="A user; repeat the parameter for each, up to "
        f"{ASKED_USERS_MAX:,} times.",
    )


class CoverageFields(Contract):
    """The bridges that an answer covers, where several bridges share their inboxes."""

    bridges: int = Field(description="Bridges that answered, including this one.")
    silent: int | None = Field(
        description="The number of other bridges that did not answer in time; null if "
        "unknown."
    )


class UserInboxFacts(Contract):
    """Facts about the inbox of a user; null if the store is unavailable."""

    user: str = Field(description="The user.")
    depth: int | None = Field(description="Messages in the inbox, delivered or not.")
    waiting: int | None = Field(description="Messages that were not delivered yet.")
    delivered: int | None = Field(
        description="The delivered mark: the user has received everything up to this offset."
    )
    last: int | None = Field(
        description="Offset of the newest message ever stored; 0 if there was none."
    )
    last_connect_s: float | None = Field(
        description="Unix time at which a window of the user last connected; null if none "
        "has since the start. In a list, other bridges report it only for connected users."
    )


class UserFacts(UserInboxFacts):
    """One user in a list."""

    windows: int = Field(description="Connected windows on all bridges.")


class UsersPage(Page[UserFacts], CoverageFields):
    """A part of the list of users."""


class UserPresence(Contract):
    """Whether a user is online now."""

    user: str = Field(description="The user.")
    online: bool = Field(description="Whether the user has a connected window.")
    windows: int = Field(description="Connected windows on all bridges.")


class PresenceFacts(CoverageFields):
    """Who of the given users is online now."""

    items: list[UserPresence] = Field(description="In the order of the request.")


class WindowFacts(Contract):
    """One window."""

    bridge: str = Field(description="The `BRIDGE_NAME` of its bridge, if set.")
    sid_short: str = Field(description="The beginning of its Socket.IO id.")
    transport: Literal["websocket", "polling"] = Field(description="Its transport now.")
    address: str = Field(
        description="The IP address of the client, from a trusted proxy if there is one."
    )
    connected_s: float = Field(description="Unix time of its connect.")
    offset: int = Field(description="Offset of the newest message that it has.")
    acks: Literal["auto", "manual"] = Field(
        description="`manual` if only its acks count as delivered."
    )
    live: bool = Field(description="False during the replay of earlier messages.")
    waiting_bytes: int = Field(description="Bytes that the client has not read yet.")


class PresenceStep(Contract):
    """A change in the presence of a user."""

    at_s: float = Field(description="Unix time.")
    change: Annotated[PresenceChange, listed(PresenceChange)] = Field(
        strict=False,  # other bridges send it as text
        description="`connected`: the first window on the bridge; `disconnected`: the last one "
        "there has gone. `user.online`, `user.offline`: what was published for workers.",
    )
    bridge: str = Field(description="The `BRIDGE_NAME` of the bridge, if set.")


class UserDetail(UserInboxFacts, CoverageFields):
    """One user with every window."""

    windows: list[WindowFacts] = Field(description="Oldest first.")
    presence: list[PresenceStep] = Field(
        description=f"The last {PRESENCE_STEPS_MAX} changes, newest first, as far as the "
        "journals of the bridges remember them."
    )


class Kicked(CoverageFields):
    """The result of a kick."""

    kicked: int = Field(description="The number of closed windows.")


class MessageState(StrEnum):
    """The delivery state of a message in an inbox."""

    DELIVERED = "delivered"
    WAITING = "waiting"
    EXPIRED = "expired"


class InboxQuery(PageQuery):
    """The page of an inbox."""

    data: QueryFlag = Field(
        default=False,
        description="Whether to return the data of messages; a page then ends after 1 MiB.",
    )
    retained: QueryFlag = Field(
        default=False,
        description="Only the newest message of each retained key, oldest first, without "
        "those past their deadline. They may be missing in the inbox itself.",
    )


class InboxMessage(Contract):
    """One message in an inbox."""

    position: str = Field(description="The position, as clients receive it.")
    offset: int = Field(description="Its offset in the user's inbox, from 1.")
    message_id: str | None = Field(description="The producer's message id.")
    event: str = Field(description="The event under which clients receive it.")
    key: str | None = Field(description="The producer's key; null without one.")
    taken_s: float = Field(description="Unix time at which the bridge consumed it.")
    expires_s: float | None = Field(
        description="Unix time of its deadline, if it has one."
    )
    bytes: int = Field(description="Size of the data.")
    state: Annotated[MessageState, listed(MessageState)] = Field(
        description="`expired`: its deadline passed before it was delivered."
    )
    data: str | None = Field(description="The data as JSON text, if requested.")


class UserPosition(Contract):
    """Where the inbox of a user ends now."""

    position: str = Field(
        description="A page that passes it as `auth.position` receives everything stored after "
        "this answer, and nothing from before."
    )


LIST_USERS: Final = Operation(
    method="GET",
    path="/api/users",
    name="listUsers",
    summary="List users by name, with their windows and inboxes.",
    answers={200: UsersPage},
    query=UsersQuery,
    problems=(503,),
)
GET_USER: Final = Operation(
    method="GET",
    path="/api/users/{user}",
    name="getUser",
    summary="Show one user with all windows. 404: no message, and no window that is remembered.",
    answers={200: UserDetail},
    path_parameters={"user": USER_PARAMETER},
    problems=(404,),
)
KICK_USER: Final = Operation(
    method="POST",
    path="/api/users/{user}/kick",
    name="kickUser",
    summary="Close all windows of a user on all bridges, with the code `kicked`.",
    answers={200: Kicked},
    path_parameters={"user": USER_PARAMETER},
)
GET_INBOX: Final = Operation(
    method="GET",
    path="/api/users/{user}/inbox",
    name="getInbox",
    summary="List the messages in the inbox of a user, newest first.",
    answers={200: Page[InboxMessage]},
    query=InboxQuery,
    path_parameters={"user": USER_PARAMETER},
    problems=(404, 503),
)
GET_POSITION: Final = Operation(
    method="GET",
    path="/api/users/{user}/position",
    name="getPosition",
    summary="Return the current position of a user; BRIDGE_API_KEY is valid too.",
    answers={200: UserPosition},
    path_parameters={"user": USER_PARAMETER},
    problems=(503,),
    is_for_producers=True,
)
GET_PRESENCE: Final = Operation(
    method="GET",
    path="/api/presence",
    name="getPresence",
    summary="Say who of many users is online now; BRIDGE_API_KEY is valid too.",
    answers={200: PresenceFacts},
    query=PresenceQuery,
    is_for_producers=True,
)
OPERATIONS: Final = (
    LIST_USERS,
    GET_USER,
    KICK_USER,
    GET_INBOX,
    GET_POSITION,
    GET_PRESENCE,
)
