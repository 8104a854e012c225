"""Code blocks of the documentation are at least well-formed; other tests run some of them."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest
import yaml

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


@pytest.mark.parametrize("block", _blocks("json", "yaml", "toml"))
def test_data_parses(block: str) -> None:
    """JSON is YAML, too."""
    try:
        assert yaml.safe_load(block)
    except yaml.YAMLError:
        assert tomllib.loads(block)
