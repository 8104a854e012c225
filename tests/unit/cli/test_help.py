"""The command line: help, version and shared options."""

import subprocess
import sys
from typing import Final

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from bridge import __version__
from bridge.cli.main import app, load_command
from bridge.cli.options import NOT_AS_FLAGS
from bridge.errors import ConfigError
from bridge.settings.model import Settings

# Of 80 columns, rich uses four for margins.
_EXAMPLE_MAX: Final = 76


def help_of(name: str) -> str:
    """Return the help text of a command."""
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.stdout


def test_the_help_of_every_command_has_examples() -> None:
    """Many users read no other documentation of a command."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)

    for name, listed in group.commands.items():
        if not listed.hidden:
            text = help_of(name)
            assert "Examples" in text or f"bridge {name}" in text, name


@pytest.mark.parametrize("name", ["users", "kick", "inbox", "trace"])
def test_the_help_of_operator_commands_has_the_exit_status(name: str) -> None:
    """A script that uses a command needs it."""
    assert "Exit status: 0 " in help_of(name)


def test_the_program_prints_its_version() -> None:
    """A bug report begins with the version."""
    result = CliRunner().invoke(app, ["--version"])

    assert (result.exit_code, result.stdout) == (0, f"bridge {__version__}\n")


@pytest.mark.parametrize("words", [("token", "ann"), ("publish", "ann", "1")])
def test_ttl_is_a_duration_in_each_command(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag has one syntax in all commands, and an error names it."""
    monkeypatch.setenv("BRIDGE_JWT_SECRET", "a-32-byte-secret-for-these-tests")

    result = CliRunner().invoke(app, [*words, "--ttl", "10 minutes"])

    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--ttl: '10 minutes' is not a duration")


def test_the_list_of_commands_has_the_first_line_of_each_help() -> None:
    """The list is written without importing the commands, and could become outdated."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)

    for name, listed in group.commands.items():
        if not listed.hidden:
            help_text = load_command(name).help or ""
            assert help_text.strip().splitlines()[0] == listed.help, name


_COUNT_MODULES = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
sys.argv = ["bridge", *sys.argv[1:]]
from bridge.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (("--version",), 360),
        (("--help",), 440),
        (("token", "ann"), 640),
        (("config",), 550),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_small_commands_import_few_modules(words: tuple[str, ...], most: int) -> None:
    """Imports are most of the time of a command; all modules took 1.6 s."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_MODULES, *words],
        env={
            "BRIDGE_JWT_SECRET": "a-32-byte-secret-for-these-tests",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(done.stderr.split())

    assert not modules & {"aiohttp", "aio_pika", "opentelemetry", "socketio", "uvloop"}
    assert len(modules) <= most


_COUNT_COLLECTIONS = """
import gc
count = lambda: sum(generation["collections"] for generation in gc.get_stats())
before = count()
from bridge.__main__ import import_command
import_command(["run"])
print(count() - before)
"""


def test_no_garbage_is_collected_during_imports() -> None:
    """It was a part of the time until a bridge is ready, and finds nothing."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_COLLECTIONS],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(done.stdout) == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("config",), 0),
        (("shards",), 3),
        (("queues", "--token", "x"), 3),
        (("publish", "ann", "1"), 3),
        (("tail", "ann"), 3),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_needs_only_the_settings_that_it_uses(
    words: tuple[str, ...], code: int
) -> None:
    """An operator's machine has no secret that signs the tokens of users."""
    done = subprocess.run(
        [sys.executable, "-m", "bridge", *words],
        env={
            "BRIDGE_AMQP_URL": "amqp://127.0.0.1:1/",
            "BRIDGE_PORT": "1",
            "BRIDGE_OPERATOR_PORT": "2",
            "BRIDGE_TOKEN": "x",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == code, done.stderr
    assert "BRIDGE_TOKEN" not in done.stderr
    assert ("bridge run would refuse" in done.stderr) is (words == ("config",))


def test_a_variable_of_another_program_is_not_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many programs read a variable TOKEN."""
    monkeypatch.setenv("TOKEN", "x")
    monkeypatch.delenv("BRIDGE_JWT_SECRET", raising=False)

    result = CliRunner().invoke(app, ["tail", "ann"])

    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("BRIDGE_JWT_SECRET: ")


@pytest.mark.parametrize("name", ["run", "check"])
def test_the_help_cuts_no_name_at_80_columns(name: str) -> None:
    """The longest settings were shown as `--dangerously-open-to-the-netw…`."""
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"})

    for setting in Settings.model_fields:
        flag = f"--{setting.replace('_', '-')}"
        assert flag in result.stdout or setting in NOT_AS_FLAGS


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("token", "ann", "--ttl", "0"), "--ttl"),
        (("revoke", "ann", "--for", "0s"), "--for"),
        (("publish", "ann", "1", "--wait", "0"), "--wait"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_time_that_may_not_be_zero_is_refused_by_the_name_of_its_option(
    words: tuple[str, ...], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bridge token --ttl 0` printed a token that no bridge accepts."""
    monkeypatch.setenv("BRIDGE_JWT_SECRET", "a-32-byte-secret-for-these-tests")

    result = CliRunner().invoke(app, words)

    assert str(result.exception) == f"{option}: must be longer than 0"


@pytest.mark.parametrize("name", ["tail", "kick"])
@pytest.mark.parametrize("url", ["127.0.0.1:8080", "http://[", "http://h:99999", ""])
def test_a_url_that_is_none_is_refused_by_the_name_of_its_option(
    url: str, name: str
) -> None:
    """A library would report another address, or end in a traceback."""
    words = [name, "ann", "--url", url, "--token", "x"]

    result = CliRunner().invoke(app, words)

    assert isinstance(result.exception, ConfigError)
    problem = f"--url: {url!r} is not like http://127.0.0.1:"
    assert str(result.exception).startswith(problem)


def test_examples_fit_a_terminal_of_80_columns() -> None:
    """An example that is broken into two lines cannot be copied."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)

    too_long = []
    for name, listed in group.commands.items():
        if not listed.hidden:
            command = load_command(name)
            parts = (
                command.commands.values()
                if isinstance(command, TyperGroup)
                else [command]
            )
            for part in parts:
                _, _, examples = (part.help or "").partition("Examples:")
                lines = map(str.strip, examples.splitlines())
                too_long += [line for line in lines if len(line) > _EXAMPLE_MAX]
    assert too_long == []


@pytest.mark.parametrize(
    ("words", "usage"),
    [(("users",), "[USER]..."), (("dead", "discard"), "[ids]...")],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_usage_shows_an_optional_argument_once_in_brackets(
    words: tuple[str, ...], usage: str
) -> None:
    """It was shown as `[[USER]...]...`."""
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"})

    assert f"[OPTIONS] {usage} " in result.stdout
