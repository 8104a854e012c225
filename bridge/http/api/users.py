"""`/api/users`: list users, show their windows and inboxes, close a user's windows."""

from time import time
from typing import Final

import structlog

from bridge.core.admin_views import InboxSummary, KeptMessage
from bridge.core.contracts.operator.operation import Page
from bridge.core.contracts.operator.users import (
    GET_INBOX,
    GET_POSITION,
    GET_PRESENCE,
    GET_USER,
    KICK_USER,
    LIST_USERS,
    InboxMessage,
    InboxQuery,
    Kicked,
    MessageState,
    PresenceFacts,
    PresenceQuery,
    UserDetail,
    UserFacts,
    UserPosition,
    UserPresence,
    UsersPage,
    UsersQuery,
)
from bridge.core.fleet import OnlineUser
from bridge.core.message import Stored, user_problem
from bridge.core.position import Position, user_epoch
from bridge.errors import StoreUnavailableError
from bridge.http.api.endpoint import Api, ApiProblem, ApiRequest
from bridge.http.api.paging import (
    bad_cursor,
    parse_cursor,
    parse_text_cursor,
    render_cursor,
)
from bridge.http.fleet import FleetView
from bridge.inbox.contract import AdminQueries, InboxReader
from bridge.logging import user_hash

log = structlog.get_logger(__name__)

_DATA_MAX_BYTES: Final = 1 << 20
# A suffix for the users `.` and `..`, which HTTP clients would resolve as path segments.
_DOTS_SUFFIX: Final = "\x7f"


def add_user_routes(
    api: Api, inboxes: AdminQueries, fleet: FleetView, reader: InboxReader
) -> None:
    """Serve users, their windows and their inboxes."""
    handlers = _UserHandlers(inboxes, fleet, reader)
    api.add(LIST_USERS, handlers.list_users)
    api.add(GET_USER, handlers.get_user)
    api.add(KICK_USER, handlers.kick)
    api.add(GET_INBOX, handlers.get_inbox)
    api.add(GET_POSITION, handlers.get_position)
    api.add(GET_PRESENCE, handlers.get_presence)


class _UserHandlers:
    def __init__(
        self, inboxes: AdminQueries, fleet: FleetView, reader: InboxReader
    ) -> None:
        self._inboxes = inboxes
        self._fleet = fleet
        self._reader = reader

    async def list_users(self, request: ApiRequest[UsersQuery]) -> UsersPage:
        query = request.query
        prefix, after = query.q or "", parse_text_cursor(query.cursor) or ""
        wanted = query.limit + 1  # one more shows whether there is a next page
        online, coverage = await self._fleet.users_online(
            prefix=prefix, after=after, limit=wanted
        )
        names = list(online)
        inboxes: dict[str, InboxSummary] = {}
        if not query.online:
            page = await self._inboxes.users(prefix=prefix, after=after, limit=wanted)
            inboxes = {inbox.user: inbox for inbox in page}
            names = sorted({*names, *inboxes})[:wanted]
        items = [
            _facts(
                name,
                inboxes.get(name) or await self._inbox(name),
                online.get(name) or OnlineUser(0, self._fleet.last_connect_s(name)),
            )
            for name in names[: query.limit]
        ]
        has_more = len(names) > query.limit
        return UsersPage(
            items=items,
            next=render_cursor(items[-1].user) if has_more else None,
            bridges=coverage.bridges,
            silent=coverage.silent,
        )

    async def get_user(self, request: ApiRequest) -> UserDetail:
        user = user_of(request.path["user"])
        inbox = await self._inbox(user)
        found = await self._fleet.windows_of(user)
        if inbox is not None and not (inbox.state.had_messages or found.are_known):
            raise _unknown_user()
        facts = _facts(user, inbox, OnlineUser(0, found.last_connect_s)).model_dump()
        facts |= {
            "windows": list(found.windows),
            "presence": list(found.presence),
            "bridges": found.coverage.bridges,
            "silent": found.coverage.silent,
        }
        return UserDetail(**facts)

    async def kick(self, request: ApiRequest) -> Kicked:
        user = user_of(request.path["user"])
        kicked, coverage = await self._fleet.kick(user)
        log.info(
            "operator.kicked",
            user=user_hash(user),
            windows=kicked,
            bridges=coverage.bridges,
            silent=coverage.silent,
        )
        return Kicked(kicked=kicked, bridges=coverage.bridges, silent=coverage.silent)

    async def get_inbox(self, request: ApiRequest[InboxQuery]) -> Page[InboxMessage]:
        user = user_of(request.path["user"])
        query = request.query
        before = _before(query.cursor)
        inbox = await self._inboxes.user(user)
        if inbox is None:
            if (await self._fleet.windows_of(user)).are_known:
                return Page[InboxMessage](items=[], next=None)
            raise _unknown_user()
        if query.retained:
            return await self._retained(inbox, query)
        messages = await self._inboxes.messages(
            user,
            before=before,
            limit=query.limit,
            max_bytes=_DATA_MAX_BYTES if query.data else 0,
        )
        now_s = time()
        items = [_message(inbox, message, now_s) for message in messages]
        has_more = bool(items) and items[-1].offset > inbox.state.first
        return Page[InboxMessage](
            items=items, next=render_cursor(items[-1].offset) if has_more else None
        )

    async def _retained(
        self, inbox: InboxSummary, query: InboxQuery
    ) -> Page[InboxMessage]:
        found = await self._reader.read_retained(
            inbox.user,
            after=_before(query.cursor) or 0,
            upto=inbox.state.last,
            max_bytes=_DATA_MAX_BYTES,
        )
        items = [
            _message(inbox, _kept(each, has_data=query.data), time())
            for each in found[: query.limit]
        ]
        has_more = bool(items) and await self._reader.read_retained(
            inbox.user, after=items[-1].offset, upto=inbox.state.last, max_bytes=1
        )
        following = render_cursor(items[-1].offset) if has_more else None
        return Page[InboxMessage](items=items, next=following)

    async def get_position(self, request: ApiRequest) -> UserPosition:
        user = user_of(request.path["user"])
        state = await self._reader.state(user)
        position = Position(user_epoch(state.epoch, user), state.last)
        return UserPosition(position=str(position))

    async def get_presence(self, request: ApiRequest[PresenceQuery]) -> PresenceFacts:
        users = request.query.user
        counts, coverage = await self._fleet.window_counts(users)
        items = []
        for user in users:
            windows = counts.get(user, 0)
            items.append(UserPresence(user=user, online=windows > 0, windows=windows))
        return PresenceFacts(
            items=items, bridges=coverage.bridges, silent=coverage.silent
        )

    async def _inbox(self, user: str) -> InboxSummary | None:
        """Return an inbox, an empty one by default; ``None`` if the store is unavailable."""
        try:
            return await self._inboxes.user(user) or InboxSummary.empty(user)
        except StoreUnavailableError:
            return None  # the user's windows can be shown without it


def _facts(user: str, inbox: InboxSummary | None, online: OnlineUser) -> UserFacts:
    return UserFacts(
        user=user,
        windows=online.windows,
        depth=inbox.depth if inbox else None,
        waiting=inbox.waiting if inbox else None,
        delivered=inbox.state.delivered if inbox else None,
        last=inbox.state.last if inbox else None,
        last_connect_s=online.last_connect_s,
    )


def user_of(text: str) -> str:
    """Return the user that a path parameter names."""
    user = text.removesuffix(_DOTS_SUFFIX) if text.strip(".") == _DOTS_SUFFIX else text
    problem = user_problem(user)
    if problem:
        raise ApiProblem(422, f"user {problem}", pointer="user")
    return user


def _unknown_user() -> ApiProblem:
    return ApiProblem(
        404, "unknown user: no window is remembered and no message was stored"
    )


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    before = parse_cursor(cursor)
    # A larger number would not fit into the databases' 64-bit integers.
    if not isinstance(before, int) or not 0 < before < 1 << 63:
        raise bad_cursor()
    return before


def _kept(stored: Stored, *, has_data: bool) -> KeptMessage:
    message = stored.message
    return KeptMessage(
        *(stored.offset, message.event, message.taken_s, message.id),
        message.deadline_s,
        len(message.data),
        message.data if has_data else None,
        message.key,
    )


def _message(inbox: InboxSummary, message: KeptMessage, now_s: float) -> InboxMessage:
    state = MessageState.WAITING
    if message.offset <= inbox.state.delivered:
        state = MessageState.DELIVERED
    elif message.deadline_s is not None and message.deadline_s <= now_s:
        state = MessageState.EXPIRED
    epoch = user_epoch(inbox.state.epoch, inbox.user)
    return InboxMessage(
        position=str(Position(epoch, message.offset)),
        offset=message.offset,
        message_id=message.id,
        event=message.event,
        key=message.key,
        taken_s=message.taken_s,
        expires_s=message.deadline_s,
        bytes=message.data_bytes,
        state=state,
        data=message.data.decode() if message.data is not None else None,
    )
