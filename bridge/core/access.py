"""From the claims of a verified token to who may see what, and until when."""

from collections.abc import Mapping
from dataclasses import dataclass

from bridge.core.message import user_problem
from bridge.errors import RefusedError
from bridge.names import Refusal


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
    return Identity(user=user, expires_s=float(expires))
