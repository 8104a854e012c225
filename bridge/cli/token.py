"""`bridge token`: a token for trying things out."""

import time
from typing import Annotated

import typer

from bridge.auth.jwt import issue_token
from bridge.cli.options import ConfigFile, parse_ttl_s
from bridge.errors import ConfigError
from bridge.settings.load import load_settings
from bridge.settings.model import Settings


def token(
    user: Annotated[str, typer.Argument(help="Whose token it is: the claim sub.")],
    ttl: Annotated[
        str, typer.Option(help="How long it is valid, as 90s, 15m or 1h.")
    ] = "1h",
    config_file: ConfigFile = None,
) -> None:
    """
    Print a token for USER, signed with the first BRIDGE_JWT_SECRET.

    For trying things out: in production the site that knows its users signs tokens.

    Examples:

        bridge token ann

        bridge token ann --ttl 5m

    """
    settings = load_settings(config_file=str(config_file) if config_file else None)
    typer.echo(signed_token(settings, user, ttl_s=parse_ttl_s(ttl)))


def signed_token(settings: Settings, user: str, *, ttl_s: float) -> str:
    """
    Sign a token that a bridge with these settings accepts.

    Raises:
        ConfigError: If the settings name no secret to sign with, or `user` cannot be one.

    """
    symmetric = [name for name in settings.jwt_algorithms if name.startswith("HS")]
    if settings.auth != "jwt" or not symmetric or not settings.jwt_secret:
        raise ConfigError(
            [
                "BRIDGE_JWT_SECRET: a token can be signed with HS256, HS384 or HS512 alone"
            ]
        )
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
