"""`bridge config`: show the effective settings."""

from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from yarl import URL

from bridge.cli.options import ConfigFile
from bridge.cli.tables import print_note
from bridge.core.redis_address import is_redis, parse_redis
from bridge.settings.load import load_settings, reload_text
from bridge.settings.model import Settings, contradictions
from bridge.settings.names import environment_name
from bridge.settings.values import render_value


def config(
    config_file: ConfigFile = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.")
    ] = False,
) -> None:
    """
    Show every setting with its effective value, secrets masked.

    Examples:

        bridge config

        BRIDGE_PORT=9000 bridge config --json

    """
    settings = load_settings(config_file=config_file, is_complete=False)
    for problem in contradictions(settings):
        print_note(f"bridge run would refuse these settings: {problem}")
    shown = {name: _shown_value(settings, name) for name in Settings.model_fields}
    if json:
        typer.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table(box=None, header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("SIGHUP", justify="center")
    for name, value in shown.items():
        text = render_value(value, Settings.model_fields[name].metadata)
        # Text instead of str: rich would read an IPv6 address in brackets as markup.
        table.add_row(environment_name(name), Text(text), reload_text(name))
    Console(highlight=False).print(table)


def _shown_value(settings: Settings, name: str) -> object:
    """Return the value of a setting for display, with secrets masked."""
    value = getattr(settings, name)
    if name == "amqp_url":
        return [_without_password(url.get_secret_value()) for url in settings.amqp_url]
    if name == "jwks_url" and settings.jwks_url is not None:
        return _without_password(settings.jwks_url)
    if name == "inbox" and is_redis(settings.inbox):
        return str(parse_redis(settings.inbox))
    if isinstance(value, tuple):
        return [_masked(part) for part in value]
    return _masked(value)


def _without_password(text: str) -> str:
    url = URL(text)
    return str(url.with_password("***") if url.password else url)


def _masked(value: object) -> object:
    return "***" if hasattr(value, "get_secret_value") else value
