"""Loading three sources into one `Settings`, and reporting all problems together."""

import os
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.settings.load import (
    changed_fields,
    load_settings,
    reload_text,
)
from bridge.settings.model import Settings
from tests.tokens import SECRET


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


# --- sources ------------------------------------------------------------------------------


def test_flags_override_the_environment_the_file_and_the_default(
    toml: Path, environment: pytest.MonkeyPatch
) -> None:
    """A flag always has an effect, whatever the deployment sets."""
    assert load_settings().prefetch == 4000
    assert load_settings(config_file=str(toml)).prefetch == 9
    environment.setenv("BRIDGE_PREFETCH", "7")
    assert load_settings(config_file=str(toml)).prefetch == 7
    assert load_settings({"prefetch": 8}, config_file=str(toml)).prefetch == 8
    assert load_settings({"prefetch": None}, config_file=str(toml)).prefetch == 7


def test_the_environment_can_name_the_file(
    toml: Path, environment: pytest.MonkeyPatch
) -> None:
    """A container is configured by its environment; the flag still overrides it."""
    environment.setenv("BRIDGE_CONFIG", str(toml))
    other = toml.with_name("other.toml")
    other.write_text("prefetch = 10\n")

    assert load_settings().prefetch == 9
    assert load_settings(config_file=str(other)).prefetch == 10


def test_no_value_contains_nul(tmp_path: Path) -> None:
    """A path with it raises an error in each call, at a reload, too."""
    path = tmp_path / "bridge.toml"
    path.write_text('schemas = "\\u0000"\nallowed_origins = ["https://a\\u0000"]\n')

    problems = problems_of(path, auth="open")

    assert "BRIDGE_SCHEMAS: contains the character NUL" in problems
    assert "BRIDGE_ALLOWED_ORIGINS: contains the character NUL" in problems


def test_a_pipe_is_no_configuration_file(tmp_path: Path) -> None:
    """At a reload nothing might write to it, and the bridge would stop."""
    os.mkfifo(tmp_path / "pipe")

    assert problems_of(tmp_path / "pipe", auth="open") == [
        f"{tmp_path}/pipe: is not a file"
    ]


def test_lists_are_comma_separated_or_toml_lists(
    toml: Path, environment: pytest.MonkeyPatch
) -> None:
    """The environment has text only."""
    assert load_settings(config_file=str(toml)).retry_delays == (1.0, 2.0)
    environment.setenv("BRIDGE_RETRY_DELAYS", "500ms, 3s")
    environment.setenv(
        "BRIDGE_ALLOWED_ORIGINS", "https://a.example/, http://b.example:81"
    )

    settings = load_settings(config_file=str(toml))

    assert settings.retry_delays == (0.5, 3.0)
    assert settings.allowed_origins == ("https://a.example", "http://b.example:81")


def test_times_of_events_are_pairs_or_a_table(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    """An event whose name contains a comma or a space can be in the table."""
    toml = tmp_path / "bridge.toml"
    toml.write_text('[undelivered_after]\ninvoice = "45s"\n"a, b" = 90\n')
    assert load_settings(config_file=str(toml)).undelivered_after == {
        "invoice": 45,
        "a, b": 90,
    }

    environment.setenv("BRIDGE_UNDELIVERED_AFTER", "invoice=45s, a=b=500ms,")
    assert load_settings().undelivered_after == {"invoice": 45, "a=b": 0.5}


def test_units_become_seconds_and_bytes(environment: pytest.MonkeyPatch) -> None:
    """The code uses one unit for each kind of value."""
    environment.setenv("BRIDGE_DRAIN_TIMEOUT", "2m")
    environment.setenv("BRIDGE_MAX_MESSAGE_BYTES", "512KiB")

    settings = load_settings()

    assert settings.drain_timeout == 120
    assert settings.max_message_bytes == 1 << 19


# --- problems -----------------------------------------------------------------------------


def test_all_problems_are_reported_together(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    """An operator fixes them in one round."""
    path = tmp_path / "bridge.toml"
    path.write_text('prefetchh = 1\nping_interval = "2.5s"\n')
    environment.setenv("BRIDGE_JWT_SECRT", "x")
    environment.setenv("BRIDGE_PREFETCH", "many")
    environment.setenv("BRIDGE_ALLOWED_ORIGINS", "*")
    environment.setenv("BRIDGE_AMQP_URL", "amqp://h,http://u:p@h")

    problems = problems_of(path, auth="open", host="0.0.0.0")

    assert sorted(problems) == sorted(
        [
            "BRIDGE_JWT_SECRT: is not a setting, did you mean BRIDGE_JWT_SECRET?",
            "BRIDGE_PREFETCH: should be a whole number",
            "BRIDGE_ALLOWED_ORIGINS: * would let every site use your users' tokens; if you "
            "want that, set BRIDGE_DANGEROUSLY_ALLOW_ANY_ORIGIN=true instead",
            "BRIDGE_AMQP_URL: URL number 2 must look like amqp://user:password@host:5672/vhost",
            "BRIDGE_PING_INTERVAL: should be a whole number",
            "prefetchh in the TOML file: is not a setting, did you mean prefetch?",
            "BRIDGE_AUTH: open on 0.0.0.0 lets everyone read all messages; bind to "
            "127.0.0.1, use jwt, or, if you want that, set "
            "BRIDGE_DANGEROUSLY_OPEN_TO_THE_NETWORK=true",
        ]
    )


def test_a_variable_name_in_the_file_suggests_the_name_that_files_use(
    tmp_path: Path,
) -> None:
    """The suggestion `BRIDGE_PORT` for `BRIDGE_PORT` would be useless."""
    path = tmp_path / "bridge.toml"
    path.write_text("BRIDGE_PORT = 9000\n")

    assert problems_of(path, auth="open") == [
        "BRIDGE_PORT in the TOML file: is not a setting, did you mean port?"
    ]


def test_an_unknown_name_without_a_near_one_gets_no_suggestion(
    environment: pytest.MonkeyPatch,
) -> None:
    """A wrong suggestion is worse than none."""
    environment.setenv("BRIDGE_XYZZY", "1")

    assert problems_of() == ["BRIDGE_XYZZY: is not a setting"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"prefetch = \n", "is not TOML: Invalid value"),
        (b'namespace = "\xff"\n', "is not TOML: 'utf-8' codec"),
        (b"prefetch = " + b"9" * 5000, "is not TOML: Exceeds the limit"),
        (b"prefetch = " + b"[" * 5000, "is not TOML: maximum recursion depth"),
        (b"#" * (1 << 20) + b"\n", "is larger than 1048576 bytes"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_an_unreadable_file_is_reported_with_the_other_problems(
    tmp_path: Path,
    environment: pytest.MonkeyPatch,
    content: bytes | None,
    problem: str,
) -> None:
    """A missing file is an error, because the operator named it on purpose."""
    path = tmp_path / "bridge.toml"
    if content is not None:
        path.write_bytes(content)
    environment.setenv("BRIDGE_PORT", "99999")

    problems = problems_of(path)

    assert len(problems) == 2
    assert problems[0].startswith(f"{path}: {problem}")
    assert problems[1].startswith("BRIDGE_PORT: should be less than or equal to 65535")


def test_problems_contain_no_secrets(
    environment: pytest.MonkeyPatch,
) -> None:
    """Problems end up in logs and tickets."""
    environment.setenv("BRIDGE_JWT_SECRET", "hunter2")
    environment.setenv(
        "BRIDGE_AMQP_URL", "amqp://u:hunter2@h:0/, amqp://u:hunter2@h:x/"
    )
    environment.setenv("BRIDGE_OPERATOR_TOKEN", "")
    environment.setenv("BRIDGE_JWT_PUBLIC_KEY", "hunter2")
    environment.setenv("BRIDGE_JWKS_URL", "http://u:hunter2@example.org/")

    problems = problems_of()

    assert len(problems) == 5
    assert "hunter2" not in "\n".join(problems)


def test_printed_settings_contain_no_secrets(environment: pytest.MonkeyPatch) -> None:
    """Debuggers, tracebacks and log lines print them."""
    environment.setenv("BRIDGE_AMQP_URL", "amqp://u:hunter2@h/")
    environment.setenv("BRIDGE_OPERATOR_TOKEN", "hunter2-and-more-characters")
    environment.setenv("BRIDGE_API_KEY", "hunter2-and-more-characters")
    environment.setenv("BRIDGE_JWT_SECRET", "hunter2-and-more-characters-" * 3)

    settings = load_settings()

    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in text


# --- reload -----------------------------------------------------------------------------


def test_changed_fields_are_split_into_reloadable_and_restart(
    environment: pytest.MonkeyPatch,
) -> None:
    """The reload logs both lists, so no change is ignored silently."""
    old = load_settings()
    environment.setenv("BRIDGE_PREFETCH", "7")
    environment.setenv("BRIDGE_PORT", "8888")
    environment.setenv("BRIDGE_JWT_SECRET", "another-secret-for-these-tests-1" * 2)
    new = load_settings()

    assert changed_fields(old, old) == ([], [])
    assert changed_fields(old, new) == (["prefetch", "jwt_secret"], ["port"])


@pytest.mark.parametrize(
    ("setting", "old", "new", "is_applied"),
    [
        ("amqp_url", "amqp://a:1@h/v", "amqp://b:2@h/v", True),
        ("amqp_url", "amqp://a:1@h/v,amqp://a:1@i/v", "amqp://a:2@h/v", False),
        ("amqp_url", "amqp://a:1@h/v", "amqp://a:1@h/w", False),
        ("amqp_url", "amqps://h", "amqps://h/?cafile=/dev/null", True),
        ("inbox", "redis://a:1@h/3", "redis://b:2@h/3", True),
        ("inbox", "rediss://h", "rediss://h?ca=new.pem&cert=new.pem", True),
        ("inbox", "redis://:1@h/3", "redis://:1@h/4", False),
        ("inbox", "redis://h", "redis://h?replicas=1", False),
        ("inbox", "memory:", "sqlite:inbox", False),
        ("management_url", "http://h/", "http://a:1@i/", True),
    ],
)
def test_a_reload_applies_logins_and_no_other_store_or_broker(
    setting: str, old: str, new: str, *, is_applied: bool
) -> None:
    """With another store or broker, messages that wait in the old one would be left behind."""
    secret = {"jwt_secret": SECRET}
    before = load_settings(secret | {setting: old})
    after = load_settings(secret | {setting: new})

    expected = ([setting], []) if is_applied else ([], [setting])
    assert changed_fields(before, after) == expected


def test_each_setting_has_a_description_and_a_reload_flag() -> None:
    """The table of docs/settings.md and SIGHUP use them."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith((".", "`", ")")), name
        assert isinstance(field.json_schema_extra, dict), name
        assert reload_text(name) in {"yes", "login", ""}, name


def test_published_settings_keep_their_names() -> None:
    """Renaming one of these breaks existing deployments."""
    names = """
    amqp_url namespace prefetch host port operator_host operator_port operator_token
    api_key auth jwt_secret jwt_public_key jwks_url jwt_algorithms jwt_audience
    jwt_issuer allowed_origins inbox inbox_max_messages inbox_max_age
    max_message_bytes slow_client_bytes retry_delays drain_timeout legacy_push
    log_level log_format
    """

    assert set(names.split()) <= set(Settings.model_fields)


def test_variables_of_a_kubernetes_service_get_one_hint(
    environment: pytest.MonkeyPatch,
) -> None:
    """A Service named `bridge` sets them in every pod of its namespace."""
    environment.setenv("BRIDGE_SERVICE_HOST", "10.0.0.7")
    environment.setenv("BRIDGE_SERVICE_PORT", "8080")
    environment.setenv("BRIDGE_SERVICE_PORT_HTTP", "8080")
    environment.setenv("BRIDGE_PORT_8080_TCP", "tcp://10.0.0.7:8080")
    environment.setenv("BRIDGE_PORT_8080_TCP_PROTO", "tcp")
    environment.setenv("BRIDGE_PORT", "tcp://10.0.0.7:8080")

    (problem,) = problems_of()
    assert problem.startswith("BRIDGE_PORT: tcp://10.0.0.7:8080 is set by Kubernetes")
    assert "enableServiceLinks: false" in problem

    environment.setenv("BRIDGE_PORT", "8080")
    assert load_settings().port == 8080
