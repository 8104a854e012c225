"""The unit of systemd is valid, and its environment file is accepted."""

import configparser
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from bridge.core.durations import parse_duration_s
from bridge.settings.model import Settings
from bridge.settings.names import environment_name

FOLDER: Final = Path(__file__).parents[2] / "compose" / "systemd"
UNIT: Final = FOLDER / "bridge.service"
PAGE: Final = FOLDER.parents[1] / "docs" / "production.md"
SOCKET: Final = FOLDER / "bridge.socket"


def section(path: Path, name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # the documented way
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser[name]


def environment() -> dict[str, str]:
    """Return the settings of the file, with those that are commented out."""
    lines = (FOLDER / "bridge.env").read_text(encoding="utf-8").splitlines()
    pairs = [line.removeprefix("#").partition("=") for line in lines if "=" in line]
    return {name: value for name, _, value in pairs if name.startswith("BRIDGE_")}


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """A misspelled directive is ignored at the start, with only a line in the journal."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.fail("systemd-analyze is not installed: apt-get install systemd")
    for unit in (UNIT, SOCKET):
        text = unit.read_text(encoding="utf-8")
        copy = tmp_path / unit.name
        copy.write_text(text.replace("/opt/bridge/bin/bridge", "/bin/true"))

    verified = subprocess.run(
        [program, "verify", str(tmp_path / UNIT.name), str(tmp_path / SOCKET.name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    mentioned = [line for line in verified.stderr.splitlines() if "bridge" in line]
    assert mentioned == []


def test_every_variable_of_the_environment_file_is_a_setting() -> None:
    """Bridge refuses to start with an unknown setting."""
    known = {environment_name(name) for name in Settings.model_fields}

    assert environment().keys() <= known


def test_the_environment_file_is_accepted_once_the_secrets_are_filled_in() -> None:
    """An operator changes the addresses and secrets, and nothing else."""
    given = environment() | {"BRIDGE_OPERATOR_TOKEN": "operator-token-of-the-tests"}
    given = {name: value for name, value in given.items() if value}
    fields = {environment_name(name): name for name in Settings.model_fields}

    settings = Settings.model_validate(
        {fields[name]: value for name, value in given.items()}
    )

    assert settings.inbox == "sqlite:/var/lib/bridge/inbox.sqlite3"


def test_systemd_waits_longer_than_a_drain() -> None:
    """Otherwise pages are cut off in the middle of it, all at once."""
    drain_s = parse_duration_s(environment()["BRIDGE_DRAIN_TIMEOUT"])

    unit = section(UNIT, "Service")
    assert int(unit["TimeoutStopSec"]) > drain_s
    assert unit["Type"] == "notify"
    assert unit["RestartPreventExitStatus"] == "2"


def test_the_socket_unit_has_the_address_and_the_name_of_the_documented_setting() -> (
    None
):
    """The service finds its socket by the name, and commands find it by BRIDGE_PORT."""
    unit = section(SOCKET, "Socket")
    given = environment()

    assert unit["ListenStream"] == f"{given['BRIDGE_HOST']}:{given['BRIDGE_PORT']}"
    named = Settings.model_validate(
        {
            "host": f"fd:{unit['FileDescriptorName']}",
            "jwks_url": "https://login.example.org/keys",
        }
    )
    assert f"BRIDGE_HOST={named.host[0]}" in PAGE.read_text(encoding="utf-8")
