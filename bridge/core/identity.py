"""Who a window belongs to and where it is, from its token's claims and its `auth`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bridge.core.message import user_problem
from bridge.core.position import Position, parse_position, parse_recovery_id
from bridge.enums import Refusal
from bridge.errors import RefusedError

# The year 10000. Beyond it lie milliseconds taken for seconds, Infinity, and whole
# numbers that no timer and no float can hold.
_EXPIRES_BEFORE_S: Final = 253402300800


@dataclass(frozen=True, slots=True)
class Identity:
    """
    Whose windows these are.

    Attributes:
        user: The room's user.
        expires_s: Unix time at which the token's life ends; ``None`` in open mode.

    """

    user: str
    expires_s: float | None


def identify(claims: Mapping[str, object]) -> Identity:
    """
    Turn verified claims into an identity.

    Args:
        claims: Of a token whose signature, `exp`, `aud` and `iss` were checked.

    Raises:
        RefusedError: If `sub` is not a user or `exp` is not a time.

    """
    user = claims.get("sub")
    if not isinstance(user, str):
        raise RefusedError(
            Refusal.TOKEN_INVALID, "claim sub is missing or not a string"
        )
    problem = user_problem(user)
    if problem:
        raise RefusedError(Refusal.TOKEN_INVALID, f"claim sub {problem}")
    expires = claims.get("exp")
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        raise RefusedError(
            Refusal.TOKEN_INVALID, "claim exp is missing or not a number"
        )
    if not 0 <= expires < _EXPIRES_BEFORE_S:
        raise RefusedError(
            Refusal.TOKEN_INVALID, "claim exp is not a Unix time in seconds"
        )
    return Identity(user=user, expires_s=float(expires))


@dataclass(frozen=True, slots=True)
class ConnectAuth:
    """
    What a page passed in `auth`, and what the stock client put with it.

    Attributes:
        token: The page's token.
        has_manual_acks: Whether only the page's `ack` counts as delivered.
        recovery_id: `pid`, from the stock client when it reconnects.
        wanted: Where the page says it is; `None` if it says nothing.

    """

    token: str | None = None
    has_manual_acks: bool = False
    recovery_id: str | None = None
    wanted: Position | None = None


def parse_connect_auth(data: object) -> ConnectAuth:
    """
    Read `auth`; fields that the bridge does not know are the page's own business.

    A position that is none counts as one of another store: the page is told that
    something may be missing, which is true, instead of being turned away.

    Raises:
        RefusedError: If a field has a type that it cannot have.

    """
    if data is None:
        return ConnectAuth()
    if not isinstance(data, Mapping):
        raise RefusedError(Refusal.BAD_REQUEST, "auth is not an object")
    token = data.get("token")
    if token is not None and not isinstance(token, str):
        raise RefusedError(Refusal.BAD_REQUEST, "auth.token is not a string")
    acks = data.get("acks", "auto")
    if acks not in ("auto", "manual"):
        raise RefusedError(Refusal.BAD_REQUEST, "auth.acks is neither auto nor manual")
    recovery_id = data.get("pid")
    return ConnectAuth(
        token=token or None,
        has_manual_acks=acks == "manual",
        recovery_id=recovery_id if isinstance(recovery_id, str) else None,
        wanted=_wanted(data),
    )


_NOWHERE = Position(epoch="", offset=0)  # of no store


def _wanted(data: Mapping[object, object]) -> Position | None:
    """`offset` is where the stock client is, `pid` where it began, `position` the page's."""
    try:
        if data.get("pid") is not None:
            began_at = parse_recovery_id(data["pid"])
            if data.get("offset") is None:
                return began_at
            # The client keeps the offset of its last message for ever, the pid only
            # until it gets a new one: what is older than the pid is over.
            had = parse_position(data["offset"])
            is_newer = had.epoch == began_at.epoch and had.offset > began_at.offset
            return had if is_newer else began_at
        position = data.get("position")
        return None if position is None else parse_position(position)
    except ValueError:
        return _NOWHERE


def cookie_value(header: str, name: str) -> str | None:
    """
    Return the value of the cookie `name` in a header `Cookie`; `None` if it has none.

    Of several with that name the first counts: the one with the longest path.
    """
    for pair in header.split(";"):
        key, _, value = pair.partition("=")
        if key.strip() == name:
            return value.strip().strip('"')
    return None
