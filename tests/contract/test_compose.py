"""
Check `compose/` without a Docker engine.

Paths must exist, names must be known, numbers must be consistent. RabbitMQ runs with its
shipped configuration, and the program of the health check runs, too.
"""

import asyncio
import json
import re
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from bridge.app import Bridge
from bridge.core.broker_names import BrokerNames
from bridge.core.durations import parse_duration_s
from bridge.core.properties import NO_PROPERTIES
from bridge.http.listeners import Listening
from bridge.settings.load import CONFIG_FILE_VARIABLE, load_settings
from bridge.settings.model import Settings
from bridge.settings.names import environment_name
from tests.conftest import eventually
from tests.integration.operator.dead_letter_fixtures import ready
from tests.local_node import LocalNode

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
STARTED = ("compose.yaml", "fleet.yaml")
FILES = sorted(
    path for path in COMPOSE.rglob("*") if path.is_file() and path.name != ".env"
)
INTERPOLATION = re.compile(r"\$\{(?P<name>\w+)(?::?(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return tree


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Replace `${NAME}`, `${NAME:-default}` and `${NAME:?message}` as compose does."""

    def value(match: re.Match[str]) -> str:
        given = variables.get(match["name"])
        if given is not None:
            return given
        assert match["kind"] == "-", f"{match['name']} has neither value nor default"
        return match["rest"] or ""

    return INTERPOLATION.sub(value, text)


def env_file(path: Path) -> dict[str, str]:
    """Read the variables of a `.env` file."""
    lines = path.read_text().splitlines()
    return dict(
        line.split("=", 1) for line in lines if line and not line.startswith("#")
    )


def dockerfile() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, in order."""
    text = (COMPOSE / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", text))
    return [
        (word, rest)
        for word, _, rest in (
            line.partition(" ") for line in joined.splitlines() if line
        )
    ]


def last_stage() -> dict[str, str]:
    """Return the instructions of the final image; the last of equal ones counts."""
    lines = dockerfile()
    start = max(at for at, (word, _) in enumerate(lines) if word == "FROM")
    return dict(lines[start:])


# --- names and paths ----------------------------------------------------------------------


def test_every_named_setting_exists() -> None:
    """With an unknown setting, the bridge refuses to start."""
    known = {environment_name(name) for name in Settings.model_fields}
    known.add(CONFIG_FILE_VARIABLE)

    for path in FILES:
        named = set(re.findall(r"\bBRIDGE_[A-Z][A-Z_]*[A-Z]\b", path.read_text()))
        assert named <= known, path.name


def test_the_example_has_the_variables_that_compose_uses() -> None:
    """A variable in one file only would be never used or never set."""
    text = "".join((COMPOSE / name).read_text() for name in STARTED)
    asked = {match["name"]: match["kind"] for match in INTERPOLATION.finditer(text)}
    example = (COMPOSE / ".env.example").read_text()

    demanded = {name for name, kind in asked.items() if kind == "?"}
    assert demanded == set(re.findall(r"(?m)^(\w+)=$", example))
    assert set(asked) == set(re.findall(r"(?m)^(?:# )?(\w+)=", example))


def test_every_path_in_compose_exists() -> None:
    """Docker would create an empty folder in place of a missing file."""
    services = compose()["services"]
    build = services["bridge"]["build"]
    context = COMPOSE / build["context"]

    assert (context / build["dockerfile"]).samefile(COMPOSE / "Dockerfile")
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).is_file(), source
            else:
                assert source in compose()["volumes"]


def test_the_operator_port_and_the_broker_are_published_on_loopback_only() -> None:
    """Ports that Docker publishes bypass the host's firewall."""
    services = compose()["services"]
    ports = [port for service in services.values() for port in service["ports"]]

    public = [port for port in ports if not port.startswith("127.0.0.1:")]
    assert public == ["${PUBLIC_ADDRESS:-127.0.0.1}:8080:8080"]
    settings = Settings.model_fields
    inside = {int(port.rsplit(":", 1)[1]) for port in services["bridge"]["ports"]}
    assert inside == {settings["port"].default, settings["operator_port"].default}


def test_docker_waits_longer_than_the_bridge_drains() -> None:
    """Otherwise SIGKILL interrupts the drain."""
    service = compose()["services"]["bridge"]

    drain_s = parse_duration_s(service["environment"]["BRIDGE_DRAIN_TIMEOUT"])
    assert parse_duration_s(service["stop_grace_period"]) > drain_s


def test_the_trusted_proxy_is_the_gateway_of_the_network() -> None:
    """In the container, an nginx on the host has the address of the gateway."""
    tree = compose()
    [network] = tree["networks"]["default"]["ipam"]["config"]
    environment = tree["services"]["bridge"]["environment"]

    assert interpolate(environment["BRIDGE_TRUSTED_PROXIES"], {}) == network["gateway"]
    assert interpolate(
        environment["BRIDGE_TRUSTED_PROXIES"], {"BRIDGE_TRUSTED_PROXIES": ""}
    ) == (""), "an empty value must be able to switch it off"


# --- secrets and settings ---------------------------------------------


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Return a copy of compose/ in which make-env has run."""
    folder = tmp_path / "compose"
    shutil.copytree(COMPOSE, folder, ignore=shutil.ignore_patterns(".env"))
    subprocess.run([folder / "make-env"], check=True, capture_output=True, timeout=10)
    return folder


def test_make_env_generates_secrets_that_only_the_owner_can_read(
    generated: Path,
) -> None:
    """The secrets differ from each other and are long enough for every use."""
    values = list(env_file(generated / ".env").values())

    assert len(set(values)) == len(values) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values)
    assert stat.S_IMODE((generated / ".env").stat().st_mode) == 0o600


def test_make_env_never_overwrites_secrets(generated: Path) -> None:
    """RabbitMQ stores the password at its first start only."""
    before = (generated / ".env").read_bytes()

    again = subprocess.run(
        [generated / "make-env"], check=False, capture_output=True, timeout=10
    )

    assert again.returncode != 0
    assert (generated / ".env").read_bytes() == before


def test_secrets_cannot_be_committed_or_copied_into_the_image() -> None:
    """Git and Docker must both ignore .env."""
    assert ".env" in (COMPOSE / ".gitignore").read_text().split()
    ignored = (COMPOSE / "Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in ignored
    assert not [line for line in ignored if line.startswith(("!compose", "!."))]


def container_environment(generated: Path) -> dict[str, str]:
    """Return the BRIDGE_* variables of the bridge in its container."""
    variables = env_file(generated / ".env")
    image = dict(part.split("=", 1) for part in last_stage()["ENV"].split())
    service = compose()["services"]["bridge"]["environment"]
    given = image | {
        name: interpolate(str(v), variables) for name, v in service.items()
    }
    return {name: v for name, v in given.items() if name.startswith("BRIDGE_")}


@pytest.fixture
def settings(generated: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of the bridge in its container."""
    for name, value in container_environment(generated).items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_the_bridge_accepts_its_environment(settings: Settings) -> None:
    """With invalid settings, the bridge refuses to start."""
    assert settings.host == settings.operator_host == ("0.0.0.0",)
    assert settings.auth == "jwt"
    assert settings.trusted_proxies == ("172.30.80.1",)
    assert settings.allowed_origins == ()
    assert settings.operator_token is not None
    assert settings.api_key is not None


# --- the image ----------------------------------------------------------------------------


def test_all_files_that_the_image_copies_exist_and_are_not_ignored() -> None:
    """The build would fail, but no test builds the image."""
    ignored = (COMPOSE / "Dockerfile.dockerignore").read_text().split("\n")
    copied = [
        source
        for word, rest in dockerfile()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]

    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source.removeprefix('./')}" in ignored


def test_the_image_runs_the_command_directly_and_not_as_root() -> None:
    """A shell in between would not forward SIGTERM."""
    stage = last_stage()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    [command] = json.loads(stage["ENTRYPOINT"])
    assert command in project["project"]["scripts"]
    assert json.loads(stage["CMD"]) == ["run"]
    assert int(stage["USER"]) > 0
    assert stage["RUN"].startswith(f"useradd --system --uid {stage['USER']} ")


def test_the_image_has_a_python_that_the_project_supports() -> None:
    """Both stages need the same Python, because the virtual environment refers to it."""
    bases = {rest.split()[0] for word, rest in dockerfile() if word == "FROM"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    [base] = bases
    version = re.fullmatch(r"python:3\.(\d+)-slim", base)
    least = project["project"]["requires-python"].removeprefix(">=3.")
    assert version is not None
    assert int(version[1]) >= int(least)


@contextmanager
def http_server(status: int) -> Iterator[int]:
    """Answer `/health/live` with `status`, everything else with 404; yields the port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/live" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def health_check(port: int) -> int:
    """Run the image's health check against `port`; returns its exit status."""
    line = last_stage()["HEALTHCHECK"]
    python, *arguments = json.loads(line[line.index("[") :])
    assert python == "python"
    arguments = [argument.replace("8081", str(port)) for argument in arguments]
    done = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, timeout=20
    )
    return done.returncode


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_health_check_follows_the_answer_of_the_bridge(
    status: int,
    is_healthy: bool,
) -> None:
    """The image has no curl, so the check is a line of Python."""
    with http_server(status) as port:
        assert (health_check(port) == 0) == is_healthy


def test_the_health_check_fails_without_a_listener() -> None:
    """During the first seconds of a start, no port is open."""
    with http_server(200) as port:
        pass

    assert health_check(port) != 0


# --- RabbitMQ -----------------------------------------------------------------------------


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Bridge, Listening]]:
    """Run a bridge, and drain it at the end."""
    bridge = Bridge(settings)
    stop = asyncio.Event()
    listening: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            bridge.run(stop, on_listening=listening.set_result), name="bridge"
        )
        async with asyncio.timeout(30):
            yield bridge, await listening
        stop.set()


async def test_the_permissions_of_the_bridge_s_user_are_sufficient_and_minimal(
    settings: Settings,
) -> None:
    """A missing permission would otherwise show in production, at the first dead letter."""
    lines = (COMPOSE / "rabbitmq.conf").read_text().splitlines()
    # With the lines of the cluster, too, except for its nodes, to check their syntax.
    cluster = (COMPOSE / "rabbitmq-cluster.conf").read_text().splitlines()
    lines += [line for line in cluster if ".nodes." not in line]
    async with LocalNode.start(extra_config=lines) as node:
        users = await node.ctl("-q", "list_users", "--no-table-headers")
        permissions = await node.ctl("-q", "list_permissions", "--no-table-headers")
        assert users.split() == ["bridge", "[]"]
        assert permissions.split() == ["bridge", *[r"^bridge\."] * 3]

        here = settings.model_copy(
            update={
                "amqp_url": (type(settings.amqp_url[0])(node.url),),
                "host": ("127.0.0.1",),
                "operator_host": ("127.0.0.1",),
                "port": 0,
                "operator_port": 0,
                "inbox": "memory:",  # the volume of the container does not exist here
            }
        )
        async with running(here) as (bridge, listening), aiohttp.ClientSession() as web:
            await eventually(lambda: not bridge.unready_reasons(), within_s=30)
            assert here.api_key is not None
            async with web.post(
                f"{listening.operator_url}/api/publish",
                json={"user": "alice", "data": "text"},
                headers={"X-API-Key": here.api_key.get_secret_value()},
            ) as answer:
                assert answer.status == 202, await answer.text()
            # One is dead-lettered at once, the other after a return from its retry queue.
            names = BrokerNames()
            for exchange in (names.messages, names.retry_queue(1000)):
                await bridge.components.publisher.publish(
                    exchange, b"alice", body=b"{", properties=NO_PROPERTIES
                )

            async def are_dead() -> bool:
                return await ready(node, names.dead) == 2

            await eventually(are_dead, within_s=30)
