"""
What can be known about `compose/` without a Docker engine.

Paths lead somewhere, names are known, numbers fit each other; and the two parts that are
no containers run for real: RabbitMQ's configuration and the health check's program.
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
from bridge.core.properties import NO_PROPERTIES
from bridge.demo.private_node import LocalNode
from bridge.http.listeners import Listening
from bridge.settings.load import CONFIG_FILE_VARIABLE, load_settings
from bridge.settings.model import Settings
from bridge.settings.names import environment_name
from bridge.settings.values import parse_duration_s
from tests.conftest import eventually

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
    """Do what compose does with `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

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
    """Return the final image's instructions; of equal ones the last counts."""
    lines = dockerfile()
    start = max(at for at, (word, _) in enumerate(lines) if word == "FROM")
    return dict(lines[start:])


# --- names and paths ----------------------------------------------------------------------


def test_every_setting_that_is_named_here_is_one() -> None:
    """A renamed setting would stop the bridge from starting, in containers alone."""
    known = {environment_name(name) for name in Settings.model_fields}
    known.add(CONFIG_FILE_VARIABLE)

    for path in FILES:
        named = set(re.findall(r"\bBRIDGE_[A-Z][A-Z_]*[A-Z]\b", path.read_text()))
        assert named <= known, path.name


def test_what_compose_asks_for_is_what_the_example_offers() -> None:
    """A variable that only the example knows is never used; the other way, never set."""
    text = "".join((COMPOSE / name).read_text() for name in STARTED)
    asked = {match["name"]: match["kind"] for match in INTERPOLATION.finditer(text)}
    example = (COMPOSE / ".env.example").read_text()

    demanded = {name for name, kind in asked.items() if kind == "?"}
    assert demanded == set(re.findall(r"(?m)^(\w+)=$", example))
    assert set(asked) == set(re.findall(r"(?m)^(?:# )?(\w+)=", example))


def test_every_path_that_compose_names_is_there() -> None:
    """Docker makes an empty folder out of a file that is missing."""
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


def test_only_loopback_can_reach_the_operator_s_port_and_the_broker() -> None:
    """Ports that Docker publishes pass by the host's firewall."""
    services = compose()["services"]
    ports = [port for service in services.values() for port in service["ports"]]

    public = [port for port in ports if not port.startswith("127.0.0.1:")]
    assert public == ["${PUBLIC_ADDRESS:-127.0.0.1}:8080:8080"]
    settings = Settings.model_fields
    inside = {int(port.rsplit(":", 1)[1]) for port in services["bridge"]["ports"]}
    assert inside == {settings["port"].default, settings["operator_port"].default}


def test_docker_waits_longer_than_the_bridge_drains() -> None:
    """Otherwise SIGKILL comes in the middle of it."""
    service = compose()["services"]["bridge"]

    drain_s = parse_duration_s(service["environment"]["BRIDGE_DRAIN_TIMEOUT"])
    assert parse_duration_s(service["stop_grace_period"]) > drain_s


def test_the_proxy_that_is_believed_is_the_network_s_gateway() -> None:
    """That is what an nginx on the host looks like from inside."""
    tree = compose()
    [network] = tree["networks"]["default"]["ipam"]["config"]
    environment = tree["services"]["bridge"]["environment"]

    assert interpolate(environment["BRIDGE_TRUSTED_PROXIES"], {}) == network["gateway"]
    assert interpolate(
        environment["BRIDGE_TRUSTED_PROXIES"], {"BRIDGE_TRUSTED_PROXIES": ""}
    ) == (""), "an empty value must be able to switch it off"


# --- secrets, and the settings made from them ---------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a copy of compose/ in which make-env has run."""
    place = tmp_path / "compose"
    shutil.copytree(COMPOSE, place, ignore=shutil.ignore_patterns(".env"))
    subprocess.run([place / "make-env"], check=True, capture_output=True, timeout=10)
    return place


def test_make_env_makes_secrets_that_only_the_owner_reads(made: Path) -> None:
    """They are all different, and long enough for every use."""
    values = list(env_file(made / ".env").values())

    assert len(set(values)) == len(values) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values)
    assert stat.S_IMODE((made / ".env").stat().st_mode) == 0o600


def test_make_env_never_overwrites_secrets(made: Path) -> None:
    """RabbitMQ keeps the first password for ever."""
    before = (made / ".env").read_bytes()

    again = subprocess.run(
        [made / "make-env"], check=False, capture_output=True, timeout=10
    )

    assert again.returncode != 0
    assert (made / ".env").read_bytes() == before


def test_secrets_cannot_be_committed_or_copied_into_the_image() -> None:
    """Git and Docker must both leave .env where it is."""
    assert ".env" in (COMPOSE / ".gitignore").read_text().split()
    ignored = (COMPOSE / "Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in ignored
    assert not [line for line in ignored if line.startswith(("!compose", "!."))]


def container_environment(made: Path) -> dict[str, str]:
    """Return what the bridge's process sees in its container, of BRIDGE_*."""
    variables = env_file(made / ".env")
    image = dict(part.split("=", 1) for part in last_stage()["ENV"].split())
    service = compose()["services"]["bridge"]["environment"]
    given = image | {
        name: interpolate(str(v), variables) for name, v in service.items()
    }
    return {name: v for name, v in given.items() if name.startswith("BRIDGE_")}


@pytest.fixture
def settings(made: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of the bridge in its container."""
    for name, value in container_environment(made).items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_the_bridge_accepts_its_environment(settings: Settings) -> None:
    """It refuses to start otherwise, and says so where few look."""
    assert settings.host == settings.operator_host == "0.0.0.0"
    assert settings.auth == "jwt"
    assert settings.trusted_proxies == ("172.30.80.1",)
    assert settings.allowed_origins == ()
    assert settings.operator_token is not None
    assert settings.api_key is not None


# --- the image ----------------------------------------------------------------------------


def test_everything_that_the_image_copies_is_there_and_not_ignored() -> None:
    """The build would fail, and here nobody builds."""
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
    """A shell in between would keep SIGTERM to itself."""
    stage = last_stage()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    [command] = json.loads(stage["ENTRYPOINT"])
    assert command in project["project"]["scripts"]
    assert json.loads(stage["CMD"]) == ["run"]
    assert int(stage["USER"]) > 0
    assert stage["RUN"].startswith(f"useradd --system --uid {stage['USER']} ")


def test_the_image_has_a_python_that_the_project_supports() -> None:
    """Both stages need the same one: the virtual environment points to it."""
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
            """Say nothing."""

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
    arguments = [argument.replace("8080", str(port)) for argument in arguments]
    done = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, timeout=20
    )
    return done.returncode


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_health_check_believes_what_the_bridge_answers(
    status: int,
    is_healthy: bool,
) -> None:
    """The image has no curl: a line of Python asks."""
    with http_server(status) as port:
        assert (health_check(port) == 0) == is_healthy


def test_the_health_check_fails_where_nobody_listens() -> None:
    """The first seconds of a start look like that."""
    with http_server(200) as port:
        pass

    assert health_check(port) != 0


# --- RabbitMQ -----------------------------------------------------------------------------


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Bridge, Listening]]:
    """Run a whole bridge, and drain it at the end."""
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


async def test_the_bridge_s_own_user_of_rabbitmq_may_do_what_it_must_and_no_more(
    settings: Settings,
) -> None:
    """Least privilege that is too little shows in production, at the first dead letter."""
    lines = (COMPOSE / "rabbitmq.conf").read_text().splitlines()
    # A fleet's too, but for the other nodes: that each line is understood.
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
                "host": "127.0.0.1",
                "operator_host": "127.0.0.1",
                "port": 0,
                "operator_port": 0,
                "inbox": "memory:",  # the volume is the container's
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
            # One is set aside at once, the other comes back from its waiting queue first.
            names = BrokerNames()
            for exchange in (names.messages, names.retry_queue(1000)):
                await bridge.components.publisher.publish(
                    exchange, b"alice", body=b"{", properties=NO_PROPERTIES
                )
            await eventually(
                lambda: has_messages(node, names.dead, count=2), within_s=30
            )


async def has_messages(node: LocalNode, queue: str, *, count: int) -> bool:
    """Whether `queue` holds that many messages."""
    listed = await node.ctl("-q", "list_queues", "--no-table-headers")
    return [queue, str(count)] in [line.split() for line in listed.splitlines()]
