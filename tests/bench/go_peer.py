"""
The Go server: which packages it needs, and how it is built.

`tools/setup` does not install Go, because no test needs it. Without the packages the bench
leaves the server out. It is built from Debian's packages in GOPATH mode, so no module is
downloaded.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

NAME: Final = "go"
_COMPILER_PACKAGE: Final = "golang-go"
_LIBRARIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "golang-github-rabbitmq-amqp091-go-dev": "rabbitmq/amqp091-go",
        "golang-github-gorilla-websocket-dev": "gorilla/websocket",
        "golang-github-golang-jwt-jwt-dev": "golang-jwt/jwt",
    }
)
PACKAGES: Final = (_COMPILER_PACKAGE, *_LIBRARIES)
_GOPATH: Final = Path("/usr/share/gocode")
_SOURCE: Final = Path(__file__).with_name("peers") / "page.go"
_BUILD_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """The servers of a run, and a line for the user if one was left out."""

    servers: tuple[str, ...]
    note: str | None = None


def missing_packages(*, compiler: str | None, gopath: Path) -> tuple[str, ...]:
    """
    Return Debian's packages that are needed and not installed.

    Args:
        compiler: The path of `go`; ``None`` if there is none.
        gopath: The folder of Debian's Go libraries.

    """
    github = gopath / "src" / "github.com"
    missing = [
        package
        for package, folder in _LIBRARIES.items()
        if not (github / folder).is_dir()
    ]
    return (*(() if compiler else (_COMPILER_PACKAGE,)), *missing)


def missing_here() -> tuple[str, ...]:
    """Return the packages that are missing on this machine."""
    return missing_packages(compiler=shutil.which("go"), gopath=_GOPATH)


def choose_servers(
    asked: Sequence[str] | None, *, known: Sequence[str], missing: Sequence[str]
) -> ServerChoice:
    """
    Choose the servers of a run.

    Args:
        asked: The servers that the user named; ``None`` for all.
        known: All servers.
        missing: Packages that the Go server lacks.

    Raises:
        ValueError: If the user named the Go server and packages are missing.

    """
    servers = tuple(known if asked is None else asked)
    if not missing or NAME not in servers:
        return ServerChoice(servers)
    command = f"apt-get install {' '.join(missing)}"
    if asked is not None:
        message = f"the Go server needs packages: {command}"
        raise ValueError(message)
    return ServerChoice(
        tuple(name for name in servers if name != NAME),
        f"without the Go server, which needs packages: {command}",
    )


def build(folder: Path) -> Path:
    """
    Build the server in `folder` and return the program.

    The first time takes up to a minute, because it compiles the standard library.

    Raises:
        RuntimeError: If it cannot be compiled; the errors are in the text.

    """
    program = folder / "go-page"
    try:
        subprocess.run(
            ["go", "build", "-o", str(program), str(_SOURCE)],
            env=os.environ
            | {
                "GO111MODULE": "off",
                "GOPATH": str(_GOPATH),
                "GOFLAGS": "",
                "GOCACHE": str(folder / "go-cache"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_BUILD_S,
        )
    except subprocess.CalledProcessError as exc:
        message = f"the Go server cannot be compiled: {exc.stderr[-2000:]}"
        raise RuntimeError(message) from exc
    except subprocess.TimeoutExpired as exc:
        message = f"the Go server was not compiled within {_BUILD_S:g} s"
        raise RuntimeError(message) from exc
    return program


def version_facts() -> str:
    """Return the versions of Go and of the libraries."""
    found = subprocess.run(
        ["go", "version"], capture_output=True, text=True, check=True
    ).stdout.split()[2]
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}, "]
    libraries = subprocess.run(
        [*query, *_LIBRARIES], capture_output=True, text=True, check=False
    ).stdout
    names = libraries.replace("golang-github-", "").replace("-dev", "")
    return f"{found}; {names.rstrip(', ')}".rstrip("; ")
