"""Whether the bench measures the Go server."""

from pathlib import Path

import pytest

from tests.bench.go_peer import PACKAGES, choose_servers, missing_packages

SOURCES = {
    "golang-github-rabbitmq-amqp091-go-dev": "rabbitmq/amqp091-go",
    "golang-github-gorilla-websocket-dev": "gorilla/websocket",
    "golang-github-golang-jwt-jwt-dev": "golang-jwt/jwt",
}


def with_sources(gopath: Path, *packages: str) -> Path:
    """Create the folders that Debian's packages install."""
    for package in packages:
        (gopath / "src" / "github.com" / SOURCES[package]).mkdir(parents=True)
    return gopath


def test_a_machine_without_go_lacks_all_packages(tmp_path: Path) -> None:
    """One line then installs everything."""
    assert missing_packages(compiler=None, gopath=tmp_path) == PACKAGES


def test_nothing_is_missing_on_a_machine_with_all_packages(tmp_path: Path) -> None:
    """The bench then includes the server."""
    gopath = with_sources(tmp_path, *SOURCES)

    assert missing_packages(compiler="/usr/bin/go", gopath=gopath) == ()


@pytest.mark.parametrize("package", SOURCES)
def test_a_missing_library_is_named(tmp_path: Path, package: str) -> None:
    """A compiler alone cannot build the server."""
    gopath = with_sources(tmp_path, *(SOURCES.keys() - {package}))

    assert missing_packages(compiler="/usr/bin/go", gopath=gopath) == (package,)


def test_all_servers_are_measured_if_nothing_is_missing() -> None:
    """The order is the order of the tables."""
    choice = choose_servers(None, known=("memory", "node", "go"), missing=())

    assert choice.servers == ("memory", "node", "go")
    assert choice.note is None


def test_the_go_server_is_left_out_with_the_command_that_installs_it() -> None:
    """`make bench` must run without Go, and must say why a column is empty."""
    missing = ("golang-go", "golang-github-gorilla-websocket-dev")

    choice = choose_servers(None, known=("memory", "node", "go"), missing=missing)

    assert choice.servers == ("memory", "node")
    assert choice.note is not None
    assert f"apt-get install {' '.join(missing)}" in choice.note


def test_a_go_server_that_was_asked_for_is_not_left_out() -> None:
    """A run of nothing but the Go server would succeed and measure nothing."""
    with pytest.raises(ValueError, match="apt-get install golang-go"):
        choose_servers(("go", "node"), known=("node", "go"), missing=("golang-go",))


def test_missing_packages_do_not_matter_to_a_run_without_the_go_server() -> None:
    """The note would be noise."""
    choice = choose_servers(("node",), known=("node", "go"), missing=("golang-go",))

    assert choice.servers == ("node",)
    assert choice.note is None
