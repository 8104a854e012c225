"""Run commands as an operator would."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from typer.testing import CliRunner

from bridge.cli.main import app, exit_code_of
from bridge.errors import BridgeError
from tests.integration.running import OPERATOR_TOKEN, RunningBridge


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """The output of a command."""

    stdout: str
    stderr: str


def environment(running: RunningBridge) -> dict[str, str]:
    """Return the environment of a terminal on the machine of the bridge."""
    url = running.listening.operator_url
    return {
        **{name: text for name, text in os.environ.items() if "BRIDGE" not in name},
        "BRIDGE_OPERATOR_PORT": url.rpartition(":")[2],
        "BRIDGE_OPERATOR_TOKEN": OPERATOR_TOKEN,
        "COLUMNS": "200",
    }


def run_command(
    running: RunningBridge, *arguments: str, expect: int = 0, stdin: str = ""
) -> CommandOutput:
    """
    Run `bridge ARGUMENTS`, check its exit status, and return its output.

    It runs in this process, because a new one takes a second to start. Call it in a thread
    while the bridge is running, one command at a time.
    """
    return run_with(environment(running), *arguments, expect=expect, stdin=stdin)


def run_with(
    given: Mapping[str, str | None], *arguments: str, expect: int = 0, stdin: str = ""
) -> CommandOutput:
    """Run `bridge ARGUMENTS` with this environment."""
    result = CliRunner().invoke(app, list(arguments), env=given, input=stdin)
    problem, code = "", result.exit_code
    if isinstance(result.exception, BridgeError):
        problem, code = str(result.exception), exit_code_of(result.exception)
    elif result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert code == expect, (code, problem, result.stdout, result.stderr)
    return CommandOutput(result.stdout, result.stderr + problem)
