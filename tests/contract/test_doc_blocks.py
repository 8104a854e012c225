"""Code blocks of the documentation are at least well-formed; other tests run some of them."""

import ast
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from bridge.cli.main import load_command

_ROOT: Final = Path(__file__).parents[2]
_BLOCK: Final = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def _blocks(*languages: str) -> list[object]:
    pages = [_ROOT / "README.md", _ROOT / "CONTRIBUTING.md"]
    pages += [*(_ROOT / "docs").rglob("*.md"), *(_ROOT / "compose").rglob("*.md")]
    return [
        pytest.param(match[3], id=f"{page.relative_to(_ROOT)}-{number}")
        for page in sorted(pages)
        for number, match in enumerate(_BLOCK.finditer(page.read_text("utf-8")))
        if match[2] in languages
    ]


@pytest.mark.parametrize("block", _blocks("python"))
def test_python_compiles(block: str) -> None:
    """Snippets may use `await` outside of a function, as in a notebook."""
    compile(block, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", _blocks("js"))
def test_javascript_parses(block: str, tmp_path: Path) -> None:
    """A missing parenthesis costs a reader ten minutes."""
    script = tmp_path / "block.mjs"
    script.write_text(block, encoding="utf-8")
    checked = subprocess.run(
        ["node", "--check", str(script)], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("block", _blocks("sh"))
def test_shell_parses(block: str) -> None:
    """Readers copy whole blocks."""
    checked = subprocess.run(
        ["bash", "-n"], input=block, capture_output=True, text=True, check=False
    )

    assert checked.stderr == ""


@pytest.mark.parametrize("block", _blocks("sh"))
def test_commands_of_bridge_exist(block: str) -> None:
    """A renamed command or option must not live on in a page."""
    lines = [
        line for line in block.splitlines() if re.match(r"\s*(\w+=\S+ )*bridge ", line)
    ]

    for line in lines:
        words = shlex.split(line.strip(), comments=True)
        words = words[words.index("bridge") + 1 :]
        if words[0] == "--version":
            continue
        command: Any = load_command(words[0])
        while words[1:] and words[1] in getattr(command, "commands", {}):
            words = words[1:]
            command = command.commands[words[0]]
        # `bridge inbox USER` is short for `bridge inbox show USER`.
        command = getattr(command, "commands", {}).get("show", command)
        known = {name for one in command.params for name in one.opts}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known, line


@pytest.mark.parametrize("block", _blocks("json", "yaml", "toml"))
def test_data_parses(block: str) -> None:
    """JSON is YAML, too."""
    try:
        assert yaml.safe_load(block)
    except yaml.YAMLError:
        assert tomllib.loads(block)
