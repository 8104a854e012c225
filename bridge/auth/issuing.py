"""Sign tokens for development: `bridge token`, `bridge tail` and the demo."""

import time

import jwt

from bridge.auth.keys import is_symmetric
from bridge.core.message import user_problem
from bridge.errors import ConfigError
from bridge.settings.model import Settings


def signed_token(settings: Settings, user: str, *, ttl_s: float) -> str:
    """
    Sign a token that a bridge with these settings accepts.

    Raises:
        ConfigError: If the settings have no secret to sign with, or `user` is invalid.

    """
    symmetric = [name for name in settings.token_algorithms if name.startswith("HS")]
    if settings.auth != "jwt":
        raise ConfigError(["BRIDGE_AUTH: is open, so there are no tokens"])
    if not symmetric or not settings.jwt_secret:
        problem = (
            "BRIDGE_JWT_SECRET: no token can be signed without a secret and HS256, HS384 or "
            "HS512; get one from the issuer of your tokens"
        )
        raise ConfigError([problem])
    try:
        return issue_token(
            user,
            secret=settings.jwt_secret[0].get_secret_value(),
            algorithm=symmetric[0],
            ttl_s=ttl_s,
            audience=settings.jwt_audience[0] if settings.jwt_audience else None,
            issuer=settings.jwt_issuer,
            now_s=time.time(),
        )
    except ValueError as exc:
        raise ConfigError([str(exc)]) from exc


def issue_token(
    user: str,
    *,
    secret: str,
    algorithm: str,
    ttl_s: float,
    audience: str | None,
    issuer: str | None,
    now_s: float,
) -> str:
    """
    Sign a token for `user` that is valid for `ttl_s` seconds from the Unix time `now_s`.

    Raises:
        ValueError: If `user` is not a valid user, or `algorithm` needs a private key.

    """
    problem = user_problem(user)
    if problem:
        message = f"the user {problem}"
        raise ValueError(message)
    if not is_symmetric(algorithm):
        message = (
            f"{algorithm} does not sign with a secret, expected HS256, HS384 or HS512"
        )
        raise ValueError(message)
    claims: dict[str, str | int] = {
        "sub": user,
        "iat": int(now_s),
        "exp": int(now_s + ttl_s),
    }
    if audience is not None:
        claims["aud"] = audience
    if issuer is not None:
        claims["iss"] = issuer
    return jwt.encode(claims, secret, algorithm=algorithm)
