"""From three sources to one set of settings, and every problem told at once."""

from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.settings.load import (
    changed_fields,
    is_reloadable,
    load_settings,
)
from bridge.settings.model import Settings


def problems_of(config_file: Path | None = None, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, config_file=str(config_file) if config_file else None)
    return list(caught.value.problems)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A file that sets two fields."""
    path = tmp_path / "bridge.toml"
    path.write_text('prefetch = 9\nretry_delays = ["1s", 2]\n')
    return path


# --- where values come from -------------------------------------------------------------


def test_flags_win_then_environment_then_file_then_default(
    toml: Path, environment: pytest.MonkeyPatch
) -> None:
    """So a flag at the command line can always try something out."""
    assert load_settings().prefetch == 4000
    assert load_settings(config_file=str(toml)).prefetch == 9
    environment.setenv("BRIDGE_PREFETCH", "7")
    assert load_settings(config_file=str(toml)).prefetch == 7
    assert load_settings({"prefetch": 8}, config_file=str(toml)).prefetch == 8
    assert load_settings({"prefetch": None}, config_file=str(toml)).prefetch == 7


def test_the_file_may_be_named_by_the_environment(
    toml: Path, environment: pytest.MonkeyPatch
) -> None:
    """A container has no command line to speak of; the flag wins all the same."""
    environment.setenv("BRIDGE_CONFIG", str(toml))
    other = toml.with_name("other.toml")
    other.write_text("prefetch = 10\n")

    assert load_settings().prefetch == 9
    assert load_settings(config_file=str(other)).prefetch == 10


def test_lists_are_written_with_commas_or_as_lists(
    toml: Path, environment: pytest.MonkeyPatch
) -> None:
    """The first in an environment, the second in TOML."""
    assert load_settings(config_file=str(toml)).retry_delays == (1.0, 2.0)
    environment.setenv("BRIDGE_RETRY_DELAYS", "500ms, 3s")
    environment.setenv(
        "BRIDGE_ALLOWED_ORIGINS", "https://a.example/, http://b.example:81"
    )

    settings = load_settings(config_file=str(toml))

    assert settings.retry_delays == (0.5, 3.0)
    assert settings.allowed_origins == ("https://a.example", "http://b.example:81")


def test_units_become_seconds_and_bytes(environment: pytest.MonkeyPatch) -> None:
    """Inside, everything is in one unit."""
    environment.setenv("BRIDGE_DRAIN_TIMEOUT", "2m")
    environment.setenv("BRIDGE_MAX_MESSAGE_BYTES", "512KiB")

    settings = load_settings()

    assert settings.drain_timeout == 120
    assert settings.max_message_bytes == 1 << 19


# --- what is wrong ----------------------------------------------------------------------


def test_all_problems_are_told_at_once(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    """One start, one list: not a fault an attempt."""
    path = tmp_path / "bridge.toml"
    path.write_text('prefetchh = 1\nping_interval = "2.5s"\n')
    environment.setenv("BRIDGE_JWT_SECRT", "x")
    environment.setenv("BRIDGE_PREFETCH", "many")
    environment.setenv("BRIDGE_ALLOWED_ORIGINS", "*")
    environment.setenv("BRIDGE_AMQP_URL", "amqp://h,http://u:p@h")

    told = problems_of(path, auth="open", host="0.0.0.0")

    assert sorted(told) == sorted(
        [
            "BRIDGE_JWT_SECRT: is not a setting, did you mean BRIDGE_JWT_SECRET?",
            "BRIDGE_PREFETCH: should be a valid integer, unable to parse string as an integer",
            "BRIDGE_ALLOWED_ORIGINS: * would let every site use your users' tokens; if that "
            "is meant, set BRIDGE_DANGEROUSLY_ALLOW_ANY_ORIGIN=true instead",
            "BRIDGE_AMQP_URL: URL number 2 must look like amqp://user:password@host:5672/vhost",
            "BRIDGE_PING_INTERVAL: should be a valid integer, got a number with a fractional part",
            "prefetchh in the TOML file: is not a setting, did you mean prefetch?",
            "BRIDGE_AUTH: open on 0.0.0.0 lets anybody read anybody's messages; bind to "
            "127.0.0.1, use jwt, or, if that is meant, set "
            "BRIDGE_DANGEROUSLY_OPEN_TO_THE_NETWORK=true",
        ]
    )


def test_a_variable_s_name_in_the_file_is_told_as_the_file_has_it(
    tmp_path: Path,
) -> None:
    """That BRIDGE_PORT is not a setting, did you mean BRIDGE_PORT, would help nobody."""
    path = tmp_path / "bridge.toml"
    path.write_text("BRIDGE_PORT = 9000\n")

    assert problems_of(path, auth="open") == [
        "BRIDGE_PORT in the TOML file: is not a setting, did you mean port?"
    ]


def test_an_unknown_name_that_is_near_to_none_gets_no_advice(
    environment: pytest.MonkeyPatch,
) -> None:
    """A wrong hint is worse than none."""
    environment.setenv("BRIDGE_XYZZY", "1")

    assert problems_of() == ["BRIDGE_XYZZY: is not a setting"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"prefetch = \n", "is not TOML: Invalid value"),
        (b'namespace = "\xff"\n', "is not TOML: 'utf-8' codec"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_among_the_others(
    tmp_path: Path,
    environment: pytest.MonkeyPatch,
    content: bytes | None,
    problem: str,
) -> None:
    """A missing file is an error: who names one means it."""
    path = tmp_path / "bridge.toml"
    if content is not None:
        path.write_bytes(content)
    environment.setenv("BRIDGE_PORT", "99999")

    told = problems_of(path)

    assert len(told) == 2
    assert told[0].startswith(f"{path}: {problem}")
    assert told[1].startswith("BRIDGE_PORT: should be less than or equal to 65535")


def test_no_secret_is_told_in_problems_or_when_printed(
    environment: pytest.MonkeyPatch,
) -> None:
    """Both land in logs and tickets."""
    environment.setenv("BRIDGE_JWT_SECRET", "hunter2")
    environment.setenv(
        "BRIDGE_AMQP_URL", "amqp://u:hunter2@h:0/, amqp://u:hunter2@h:x/"
    )
    environment.setenv("BRIDGE_OPERATOR_TOKEN", "")
    environment.setenv("BRIDGE_JWT_PUBLIC_KEY", "hunter2")
    environment.setenv("BRIDGE_JWKS_URL", "http://u:hunter2@example.org/")

    told = problems_of()

    assert len(told) == 5
    assert "hunter2" not in "\n".join(told)


def test_settings_show_no_secret_when_printed(environment: pytest.MonkeyPatch) -> None:
    """A debugger, a traceback, a log line: they all print."""
    environment.setenv("BRIDGE_AMQP_URL", "amqp://u:hunter2@h/")
    environment.setenv("BRIDGE_OPERATOR_TOKEN", "hunter2")
    environment.setenv("BRIDGE_API_KEY", "hunter2")
    environment.setenv("BRIDGE_JWT_SECRET", "hunter2" * 10)

    settings = load_settings()

    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in text


# --- reload -----------------------------------------------------------------------------


def test_a_reload_tells_what_takes_effect_and_what_needs_a_restart(
    environment: pytest.MonkeyPatch,
) -> None:
    """A change that is silently ignored is found out at the worst moment."""
    old = load_settings()
    environment.setenv("BRIDGE_PREFETCH", "7")
    environment.setenv("BRIDGE_PORT", "8888")
    environment.setenv("BRIDGE_JWT_SECRET", "t" * 64)
    new = load_settings()

    assert changed_fields(old, old) == ([], [])
    assert changed_fields(old, new) == (["prefetch", "jwt_secret"], ["port"])


def test_each_setting_says_what_it_is_and_whether_it_can_be_reloaded() -> None:
    """README's table and SIGHUP are made of that."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith((".", "`", ")")), name
        assert isinstance(field.json_schema_extra, dict), name
        assert is_reloadable(name) == field.json_schema_extra["reload"]


def test_the_names_that_others_rely_on_are_there() -> None:
    """The list of design 2.3: renaming one of them breaks somebody's deployment."""
    names = """
    amqp_url namespace prefetch host port operator_host operator_port operator_token
    api_key auth jwt_secret jwt_public_key jwks_url jwt_algorithms jwt_audience
    jwt_issuer allowed_origins inbox inbox_max_messages inbox_max_age
    max_message_bytes slow_client_bytes retry_delays drain_timeout legacy_push
    log_level log_format
    """

    assert set(names.split()) <= set(Settings.model_fields)
