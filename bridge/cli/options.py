"""Options that several commands share, and a flag for each setting."""

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from bridge.core.durations import parse_duration_s
from bridge.errors import ConfigError
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.settings.names import environment_name

# Every user of the machine can read a command line, so secrets have no flags.
NOT_AS_FLAGS: Final = frozenset(
    {"amqp_url", "management_url", "operator_token", "api_key", "jwt_secret"}
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="BRIDGE_CONFIG",
        help="TOML file with settings, named as in the environment without BRIDGE_ "
        "and in lower case.",
        show_envvar=False,
    ),
]
AmqpUrl = Annotated[
    str | None,
    typer.Option(
        "--amqp-url",
        help="RabbitMQ, such as amqp://user:password@host:5672/. Prefer BRIDGE_AMQP_URL: "
        "other users of the machine can read a command line.",
    ),
]

Limit = Annotated[
    int, typer.Option("--limit", min=1, help="Maximum number of entries to show.")
]
Cursor = Annotated[
    str | None,
    typer.Option(
        "--cursor", help="Continue a list: the value of `next` in its --json output."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Change nothing; print how many would be affected."),
]
OfUser = Annotated[
    str | None, typer.Option("--user", help="Only entries of this user.")
]


def parse_seconds(text: str, *, option: str, allows_zero: bool = True) -> float:
    """
    Parse the value of `option`: seconds, or a duration with its unit.

    Raises:
        ConfigError: If it is neither, or 0 where that is not allowed; the text names the
            option.

    """
    try:
        value_s = parse_duration_s(text)
    except ValueError as exc:
        raise ConfigError([f"{option}: {exc}"]) from exc
    if not value_s and not allows_zero:
        raise ConfigError([f"{option}: must be longer than 0"])
    return value_s


def check_url(url: str, *, schemes: Collection[str], example: str) -> None:
    """
    Check the value of `--url`.

    Raises:
        ConfigError: If it is not a URL with one of `schemes`, a host and a possible port.

    """
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in schemes and parts.hostname and parts.port != 0
    except ValueError:  # an open bracket, or a port above 65535
        is_valid = False
    if not is_valid:
        raise ConfigError([f"--url: {url!r} is not like {example}"])


# --- groups of options


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """
    Return `command` with options in place of its parameters that are dataclasses.

    Each field of such a class is one option, and `command` receives an instance of it.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += inspect.signature(groups[name]).parameters.values()
        else:
            parameters.append(parameter)

    def run(**given: Any) -> None:  # noqa: ANN401 - typer passes any type
        for name, group in groups.items():
            options = {field.name: given.pop(field.name) for field in fields(group)}
            given[name] = group(**options)
        command(**given)

    return _as_command(run, command, parameters)


def _as_command(
    run: Callable[..., None],
    command: Callable[..., None],
    parameters: Iterable[inspect.Parameter],
) -> Callable[..., None]:
    """Return `run` with the name and help of `command` and with these options."""
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined] # typer reads it
    run.__annotations__ = {each.name: each.annotation for each in named}
    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    return run


# --- settings

LoadSettings = Callable[[], Settings]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """
    Return `command` with a flag for each setting that is not a secret.

    `command` receives a function that loads the settings, followed by its own options. It
    may call the function again to reload. Flags stay text until then, so that problems of
    all sources are reported together.
    """
    own = list(inspect.signature(command).parameters.values())[1:]

    def run(config: Path | None, **given: Any) -> None:  # noqa: ANN401 - typer passes any type
        options = {parameter.name: given.pop(parameter.name) for parameter in own}
        config_file = str(config) if config else None
        command(lambda: load_settings(given, config_file=config_file), **options)

    parameters = [
        *own,
        _parameter("config", ConfigFile),
        _parameter("amqp_url", AmqpUrl),
        *(
            _parameter(name, _flag(name))
            for name in Settings.model_fields
            if name not in NOT_AS_FLAGS
        ),
    ]
    return _as_command(run, command, parameters)


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _flag(name: str) -> object:
    field = Settings.model_fields[name]
    return Annotated[
        str | None,
        typer.Option(
            f"--{name.replace('_', '-')}",
            help=f"{field.description} [{environment_name(name)}]",
            metavar="VALUE",
            rich_help_panel="Settings",
        ),
    ]
