"""`bridge token`: sign a token for development."""

from typing import Annotated

import typer

from bridge.auth.issuing import signed_token
from bridge.cli.options import ConfigFile, parse_seconds
from bridge.settings.load import load_settings


def token(
    user: Annotated[str, typer.Argument(help="The user of the token: its claim sub.")],
    ttl: Annotated[
        str, typer.Option(help="Lifetime of the token, such as 90s, 15m or 1h.")
    ] = "1h",
    config_file: ConfigFile = None,
) -> None:
    """
    Print a token for USER, signed with the first BRIDGE_JWT_SECRET.

    For development. In production, the site that authenticates your users signs tokens.

    Examples:

        bridge token ann

        bridge token ann --ttl 5m

    """
    settings = load_settings(config_file=config_file)
    ttl_s = parse_seconds(ttl, option="--ttl", allows_zero=False)
    typer.echo(signed_token(settings, user, ttl_s=ttl_s))
