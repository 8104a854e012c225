"""Errors name the distribution that `pip install` accepts."""

import tomllib
from pathlib import Path

from bridge.core.distribution import DISTRIBUTION, install_command

_PROJECT = tomllib.loads(
    (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
)["project"]


def test_the_name_is_that_of_the_project() -> None:
    """A package index may have another project with the name `bridge`."""
    assert _PROJECT["name"] == DISTRIBUTION


def test_a_command_installs_an_extra() -> None:
    """Operators copy it from an error."""
    assert install_command("redis") == "pip install 'rabbitmq-socketio-bridge[redis]'"
    assert "redis" in _PROJECT["optional-dependencies"]
    assert "otel" in _PROJECT["optional-dependencies"]


def test_no_source_file_names_an_extra_of_another_distribution() -> None:
    """`bridge[redis]` would install the package of another project."""
    root = Path(__file__).parents[3]
    sources = [
        *root.glob("bridge/**/*.py"),
        *root.glob("docs/**/*.md"),
        root / "README.md",
    ]
    wrong = [
        path.name
        for path in sources
        if any(
            f"{quote}bridge[{extra}]" in path.read_text(encoding="utf-8")
            for quote in "'\" `"
            for extra in _PROJECT["optional-dependencies"]
        )
    ]

    assert wrong == []
