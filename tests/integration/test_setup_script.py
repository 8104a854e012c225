"""`tools/setup` names all missing Debian packages at once, before it downloads anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import SLOW_FACTOR

_ROOT: Final = Path(__file__).parents[2]
_LIMIT_S: Final = 60 * SLOW_FACTOR
# What the script needs itself. Nothing else is on its PATH, except for Python.
_PROGRAMS: Final = ("sh", "cat", "cksum", "dirname", "env", "id", "rm")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """
    Return a checkout whose computer has Python only.

    RabbitMQ is searched by a copy of the real module, in folders that do not exist.
    Installing packages fails, as it does for a user who may not.
    """
    folder = tmp_path / "checkout"
    (folder / "bridge/demo").mkdir(parents=True)
    for name in ("tools/setup", "requirements.lock", "pyproject.toml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(_ROOT / name, folder / name)
    for name in ("__init__.py", "enums.py", "errors.py", "demo/__init__.py"):
        shutil.copy(_ROOT / "bridge" / name, folder / "bridge" / name)
    setup = (_ROOT / "bridge/demo/node_setup.py").read_text()
    (folder / "bridge/demo/node_setup.py").write_text(
        setup.replace('Path("/', 'Path("/nowhere/')
    )
    programs = folder / "programs"
    programs.mkdir()
    for name in _PROGRAMS:
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / "apt-get").symlink_to("/bin/true")
    refusing = folder / "tools/install-packages"
    refusing.write_text("#!/bin/sh\nexit 1\n")
    refusing.chmod(0o755)
    return folder


def run_setup(
    checkout: Path, purpose: str, *, python: str
) -> subprocess.CompletedProcess[str]:
    """Run `tools/setup`; the lines of `python` are what its Python can do."""
    interpreter = checkout / "programs/python3"
    interpreter.write_text(python)
    interpreter.chmod(0o755)
    return subprocess.run(
        ["tools/setup", purpose],
        cwd=checkout,
        env={"PATH": str(checkout / "programs")},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )


# Debian's Python without the package python3-venv, and without pip.
_BARE_PYTHON: Final = """\
#!/bin/sh
case "$*" in
*venv* | *virtualenv* | *"-m pip"*) exit 1 ;;
*) exec /usr/bin/env -i PYTHONDONTWRITEBYTECODE=1 {python} "$@" ;;
esac
"""
_PYTHON_THAT_HAS_VENV: Final = """\
#!/bin/sh
exec {python} "$@"
"""


@pytest.mark.parametrize(
    ("python", "first"),
    [(_BARE_PYTHON, "python3-venv nodejs npm"), (_PYTHON_THAT_HAS_VENV, "nodejs npm")],
    ids=["without venv", "with venv"],
)
def test_missing_packages_are_listed_at_once_before_any_download(
    checkout: Path, python: str, first: str
) -> None:
    """A user without root privileges asks an administrator once, and at the beginning."""
    done = run_setup(checkout, "tests", python=python.format(python=_base_python()))

    assert done.returncode == 1
    wanted = f"sudo tools/install-packages {first} chromium firefox-esr"
    assert wanted in done.stderr, done.stderr
    assert "rabbitmq-server" in done.stderr.splitlines()[-1]
    assert "Python packages" not in done.stderr


def test_the_demo_needs_the_environment_and_rabbitmq_only(checkout: Path) -> None:
    """A first try installs no browser and no load balancer."""
    python = _BARE_PYTHON.format(python=_base_python())

    done = run_setup(checkout, "demo", python=python)

    last = done.stderr.splitlines()[-1]
    assert "`sudo tools/install-packages python3-venv rabbitmq-server`" in last


def _base_python() -> str:
    """Return the Python outside of the virtual environment of the tests."""
    return os.path.realpath(sys.executable)
