"""The identity in a token's claims, and the options that a client passes in `auth`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bridge.core.message import user_problem
from bridge.core.position import Position, parse_position, parse_recovery_id
from bridge.enums import Refusal
from bridge.errors import RefusedError

# The year 10000. Larger values are milliseconds mistaken for seconds, Infinity, or integers
# that do not fit into a float or a timer.
_EXPIRES_BEFORE_S: Final = 253402300800


@dataclass(frozen=True, slots=True)
class Identity:
    """
    The authenticated user of a window.

    Attributes:
        user: The user.
        expires_s: Unix time at which the token expires; ``None`` in open mode.
        issued_s: Unix time at which the token was issued, its `iat`, if it has one.
        token_id: The `jti` of the token, if it has one.

    """

    user: str
    expires_s: float | None
    issued_s: float | None = None
    token_id: str | None = None


def identify(claims: Mapping[str, object]) -> Identity:
    """
    Return the identity in verified claims.

    Args:
        claims: Of a token whose signature, `exp`, `aud` and `iss` are verified.

    Raises:
        RefusedError: If `sub` is not a valid user or `exp` is not a Unix time.

    """
    user = claims.get("sub")
    if isinstance(user, int) and not isinstance(user, bool):
        user = str(user)  # RFC 7519 wants a string; many issuers write a number
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
    issued, token_id = claims.get("iat"), claims.get("jti")
    return Identity(
        user=user,
        expires_s=float(expires),
        # A number that PyJWT accepts may still be too large for a float.
        issued_s=float(issued)
        if isinstance(issued, int | float) and 0 <= issued < _EXPIRES_BEFORE_S
        else None,
        token_id=token_id if isinstance(token_id, str) else None,
    )


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """
    What a client passed in `auth` and what the stock client added to it.

    Attributes:
        token: The JWT; `None` if it comes in a header or a cookie.
        has_manual_acks: Whether only the window's `ack` moves the delivered mark.
        recovery_id: `pid`, added by the stock client when it reconnects.
        position: The last position that the client has; `None` if it named none.

    """

    token: str | None = None
    has_manual_acks: bool = False
    recovery_id: str | None = None
    position: Position | None = None


def parse_connect_auth(data: object) -> ConnectOptions:
    """
    Parse `auth`; unknown fields are ignored.

    An invalid position is treated as one of another store: the client is notified that
    messages may be missing, which is true, instead of being refused.

    Raises:
        RefusedError: If a field has the wrong type.

    """
    if data is None:
        return ConnectOptions()
    if not isinstance(data, Mapping):
        raise RefusedError(Refusal.BAD_REQUEST, "auth is not an object")
    token = data.get("token")
    if token is not None and not isinstance(token, str):
        raise RefusedError(Refusal.BAD_REQUEST, "auth.token is not a string")
    acks = data.get("acks", "auto")
    if acks not in ("auto", "manual"):
        raise RefusedError(Refusal.BAD_REQUEST, "auth.acks is neither auto nor manual")
    recovery_id = data.get("pid")
    return ConnectOptions(
        token=token or None,
        has_manual_acks=acks == "manual",
        recovery_id=recovery_id if isinstance(recovery_id, str) else None,
        position=_position(data),
    )


_INVALID_POSITION: Final = Position(epoch="", offset=0)  # its epoch matches no store


def _position(data: Mapping[object, object]) -> Position | None:
    try:
        if data.get("pid") is not None:
            connected_at = parse_recovery_id(data["pid"])
            if data.get("offset") is None:
                return connected_at
            # The stock client never forgets the offset of its last message, but replaces
            # the pid with each connect: an offset older than the pid is obsolete.
            last = parse_position(data["offset"])
            is_newer = (
                last.epoch == connected_at.epoch and last.offset > connected_at.offset
            )
            return last if is_newer else connected_at
        position = data.get("position")
        return None if position is None else parse_position(position)
    except ValueError:
        return _INVALID_POSITION


def request_token(
    authorization: str | None, cookies: str | None, cookie: str
) -> str | None:
    """
    Return the token in the headers of a request; `None` if there is none.

    Args:
        authorization: The header `Authorization`; a bearer token in it comes first.
        cookies: The header `Cookie`.
        cookie: The name of the cookie that may hold a token.

    """
    scheme, _, bearer = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and bearer.strip():
        return bearer.strip()
    return cookie_value(cookies, cookie) if cookies else None


def cookie_value(header: str, name: str) -> str | None:
    """
    Return the value of the cookie `name` in the header `Cookie`; `None` if it is missing.

    Of several cookies with that name the first is used: it has the longest path.
    """
    for pair in header.split(";"):
        key, _, value = pair.partition("=")
        if key.strip() == name:
            return value.strip().strip('"')
    return None
