"""Loads flags, environment and file into one checked `Settings`."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr, ValidationError
from yarl import URL

from bridge.core.redis_address import is_redis, parse_redis
from bridge.errors import ConfigError
from bridge.settings.files import read_file
from bridge.settings.model import PartialSettings, Settings
from bridge.settings.names import ENVIRONMENT_PREFIX, did_you_mean, environment_name

CONFIG_FILE_VARIABLE: Final = "BRIDGE_CONFIG"
# What Kubernetes sets in each pod for a Service that is named `bridge`.
_OF_KUBERNETES: Final = re.compile(
    r"BRIDGE_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)"
)
TOKEN_VARIABLE: Final = "BRIDGE_TOKEN"  # noqa: S105 - of `bridge tail`


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    config_file: Path | str | None = None,
    is_complete: bool = True,
) -> Settings:
    """
    Load all sources and check them.

    Args:
        flags: Field names and values of the command line; ``None`` means not set.
        config_file: A TOML file; ``None`` uses the file of BRIDGE_CONFIG, if any.
        is_complete: False for a command that needs some settings only: a missing secret,
            or settings that contradict each other, are no problems then.

    Raises:
        ConfigError: With all problems.

    """
    problems: list[str] = []
    path = config_file or os.environ.get(CONFIG_FILE_VARIABLE)
    given = _read_file(Path(path), problems) if path else {}
    problems += _unknown_variables(os.environ)
    # A variable takes precedence over the file, and a flag over both.
    variables = {name.upper() for name in os.environ}
    given = {n: v for n, v in given.items() if environment_name(n) not in variables}
    given |= {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        settings = (Settings if is_complete else PartialSettings)(**given)
    except ValidationError as exc:
        for error in exc.errors(include_input=False, include_url=False):
            problems += str(error["msg"]).removeprefix("Value error, ").splitlines()
    if problems:
        raise ConfigError(problems)
    return settings


def changed_fields(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """
    Compare two settings.

    Returns:
        Names of the changed fields that a reload can apply, and names of the changed
        fields that need a restart.

    """
    changed = [
        name
        for name in Settings.model_fields
        if getattr(old, name) != getattr(new, name)
    ]
    applied = [name for name in changed if _is_applied(name, old, new)]
    return applied, [name for name in changed if name not in applied]


def reload_text(field_name: str) -> str:
    """
    Return which changes of this field SIGHUP applies to the running bridge.

    Either "yes" for all, "login" for a new login or new TLS files, or "" for none.
    """
    extra = Settings.model_fields[field_name].json_schema_extra
    return str(extra["reload"]) if isinstance(extra, dict) else ""


def _is_applied(name: str, old: Settings, new: Settings) -> bool:
    if reload_text(name) != "login":
        return reload_text(name) == "yes"
    return _without_logins(getattr(old, name)) == _without_logins(getattr(new, name))


def _without_logins(value: str | tuple[SecretStr, ...]) -> list[object]:
    """Return what two values have in common that differ in logins and TLS files only."""
    if isinstance(value, str):
        return [parse_redis(value).without_login() if is_redis(value) else value]
    # The query of a broker's URL names the TLS files.
    urls = [URL(url.get_secret_value()) for url in value]
    return [url.with_user(None).with_query(None) for url in urls]


def _read_file(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the content of the TOML file; a problem with it is added to `problems`."""
    content = read_file(path)
    if isinstance(content, str):
        problems.append(f"{path}: {content}")
        return {}
    try:
        given = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as exc:  # also a number of thousands of digits
        problems.append(f"{path}: is not TOML: {exc}")
        return {}
    for name, value in given.items():
        if _has_nul(value):
            problems.append(f"{environment_name(name)}: contains the character NUL")
    return given


def _has_nul(value: object) -> bool:
    """Return whether a value contains NUL, which no path, host or secret can."""
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    known = {environment_name(name) for name in Settings.model_fields} | {
        CONFIG_FILE_VARIABLE,
        TOKEN_VARIABLE,
    }
    return [
        f"{name}: is not a setting{did_you_mean(name, known)}"
        for name in sorted(environment)
        if name.upper().startswith(ENVIRONMENT_PREFIX)
        and name.upper() not in known
        and not _OF_KUBERNETES.fullmatch(name)
    ]
