"""The wheel works in an environment that has only the packages that it declares."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bridge import __version__
from bridge.core.distribution import DISTRIBUTION
from tests.conftest import SLOW_FACTOR

_ROOT: Final = Path(__file__).parents[2]
_LIMIT_S: Final = 60 * SLOW_FACTOR
_SETTINGS: Final = MappingProxyType(
    {
        "BRIDGE_AMQP_URL": "amqp://127.0.0.1:1/",  # nothing listens there
        "BRIDGE_JWT_SECRET": "a-32-byte-secret-for-these-tests",
        "BRIDGE_BROKER_TIMEOUT": "2s",
        "BRIDGE_PORT": "0",
        "BRIDGE_OPERATOR_PORT": "0",
    }
)


def _run(
    *arguments: object, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(one) for one in arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), **variables},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, because setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, source)
    shutil.copytree(
        _ROOT / "bridge",
        source / "bridge",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", folder)
    built = _run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


def _needed(requirements: Sequence[str], extra: str) -> Iterator[Distribution]:
    """Yield the distributions that `requirements` need, from those that are installed here."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:  # the environment of the tests always has them
            pytest.fail(f"{requirement} is not installed")
        yield found
        for inner in requirement.extras or {""}:
            yield from _needed(found.requires or [], inner)


def _environment(folder: Path, wheel: Path, extra: str) -> Path:
    """Install the wheel and what it declares, without an index; return its `bin`."""
    environment = folder / "environment"
    _run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    python = environment / "bin" / "python"
    options = ("install", "--no-deps", "--no-index", wheel)
    installed = _run(
        sys.executable, "-m", "pip", "--python", python, *options, cwd=folder
    )
    assert installed.returncode == 0, installed.stderr
    (packages,) = environment.glob("lib/python*/site-packages")
    (bridge,) = packages.glob("*.dist-info")
    linked = set()
    for package in _needed(Distribution.at(bridge).requires or [], extra):
        name = canonicalize_name(package.name)
        for top in {file.parts[0] for file in package.files or []} - {
            "..",
            "__pycache__",
        }:
            target = packages / top
            if (name, top) not in linked and not target.exists():
                target.symlink_to(str(package.locate_file(top)))
            linked.add((name, top))
    return environment / "bin"


@pytest.mark.parametrize("extra", ["", "redis", "otel"])
def test_the_wheel_runs_with_only_what_it_declares(
    wheel: Path, tmp_path: Path, extra: str
) -> None:
    """A dependency that only the tests have would be missing in production."""
    programs = _environment(tmp_path, wheel, extra)

    for name in ("bridge", "rsbridge"):
        printed = _run(programs / name, "--version", cwd=tmp_path)
        assert printed.stdout.split()[-1] == __version__, printed.stderr
    checked = _run(programs / "bridge", "check", cwd=tmp_path, **_SETTINGS)
    assert checked.returncode == 3, checked.stderr  # only the broker is missing
    assert "fail" in checked.stdout


def test_a_missing_extra_is_named_with_the_distribution(
    wheel: Path, tmp_path: Path
) -> None:
    """The command in the error must install this program, not another one."""
    programs = _environment(tmp_path, wheel, "")
    redis = {"BRIDGE_INBOX": "redis://127.0.0.1:1/"}

    checked = _run(programs / "bridge", "check", cwd=tmp_path, **_SETTINGS, **redis)
    started = _run(programs / "bridge", "run", cwd=tmp_path, **_SETTINGS, **redis)

    assert f"pip install '{DISTRIBUTION}[redis]'" in checked.stdout
    assert f"pip install '{DISTRIBUTION}[redis]'" in started.stderr
    assert started.returncode == 2


def test_the_wheel_contains_every_file_of_the_package(wheel: Path) -> None:
    """Pages, scripts and licenses are not Python files, and are easily forgotten."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(_ROOT).as_posix()
        for path in (_ROOT / "bridge").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert files - packed == set()
