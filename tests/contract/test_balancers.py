"""
The configurations in `compose/balancers/` are valid and consistent with the bridge.

nginx and HAProxy also run in `tests/integration/balancers`. Traefik has no Debian package,
so its configuration is only checked here.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.core.durations import parse_duration_s
from bridge.settings.model import Settings
from bridge.settings.names import environment_name
from tests.balancers import (
    BALANCERS,
    HAPROXY,
    KINDS,
    NGINX,
    command,
    for_nginx_here,
    write_config,
)

COMPOSE = BALANCERS.parent
BRIDGES = ["bridge-1", "bridge-2", "bridge-3"]


def traefik(name: str = "traefik-bridges.yaml") -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((BALANCERS / name).read_text())
    return tree


def duration_s(text: str, name: str) -> float:
    """Return the value of the directive `name`, which must be the same everywhere."""
    [found] = set(re.findall(rf"(?m)^\s*{name}\s+(\w+);?$", text))
    return parse_duration_s(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_balancer_accepts_its_configuration(kind: str, tmp_path: Path) -> None:
    """With three bridges; addresses replace host names that do not resolve here."""
    write_config(kind, tmp_path, port=8000, bridge_ports=[8001, 8002, 8003])
    check = "-t" if kind == "nginx" else "-c"

    done = subprocess.run(
        [*command(kind, tmp_path), check],
        check=False,
        capture_output=True,
        timeout=60,
    )

    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    assert "warn" not in output.lower(), output


def test_nginx_accepts_the_configuration_of_one_bridge(tmp_path: Path) -> None:
    """Only the address and the folder of its log differ from the shipped file."""
    (tmp_path / "temporary").mkdir()
    text = (COMPOSE / "nginx.conf").read_text()
    (tmp_path / "nginx.conf").write_text(for_nginx_here(text, port=8000))

    done = subprocess.run(
        [*command("nginx", tmp_path), "-t"],
        check=False,
        capture_output=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr.decode()


def test_silent_windows_are_not_cut() -> None:
    """The proxy's timeouts must be longer than the ping interval and timeout."""
    fields = Settings.model_fields
    silent_s = sum(
        parse_duration_s(fields[name].default)
        for name in ("ping_interval", "ping_timeout")
    )
    nginx, haproxy = NGINX.read_text(), HAPROXY.read_text()
    [bridge] = traefik()["http"]["serversTransports"].values()
    timeouts = bridge["forwardingTimeouts"]
    entry = traefik("traefik.yaml")["entryPoints"]["web"]["transport"]

    for name in ("proxy_read_timeout 60s", "proxy_send_timeout 60s"):
        assert f" {name};" in nginx
    assert silent_s < 60
    for kind in ("client", "server", "tunnel"):
        assert duration_s(haproxy, f"timeout {kind}") > silent_s
    assert parse_duration_s(timeouts["responseHeaderTimeout"]) > silent_s
    assert entry["respondingTimeouts"]["writeTimeout"] == "0s"


def test_all_balancers_have_the_same_bridges() -> None:
    """They are the bridges of the fleet's compose file."""
    nginx, haproxy = NGINX.read_text(), HAPROXY.read_text()
    http = traefik()["http"]

    routes = re.findall(r'"~\^([\w-]+)\\\." ([\w-]+);', nginx)
    assert routes == [(name, name) for name in BRIDGES]
    for name in BRIDGES:
        assert f"upstream {name} {{ server {name}:8080;" in nginx
    upstream = nginx[nginx.index("upstream new_session") :]
    upstream = upstream[: upstream.index("}")]
    assert re.findall(r"server ([\w-]+):8080 ", upstream) == BRIDGES

    servers = re.findall(r"(?m)^    server ([\w-]+) ([\w-]+):8080$", haproxy)
    assert servers == [(name, name) for name in BRIDGES] * 2

    urls = [f"http://{name}:8080" for name in BRIDGES]
    for name, url in zip(BRIDGES, urls, strict=True):
        assert http["services"][name]["loadBalancer"]["servers"] == [{"url": url}]
        assert http["routers"][name]["service"] == name
        assert f"QueryRegexp(`sid`, `^{name}\\.`)" in http["routers"][name]["rule"]
    new = http["services"]["new-session"]["loadBalancer"]
    assert [each["url"] for each in new["servers"]] == urls


def test_the_parts_of_traefik_refer_to_existing_parts() -> None:
    """Traefik starts with dangling references and answers 404 or 500."""
    static, http = traefik("traefik.yaml"), traefik()["http"]

    for name, router in http["routers"].items():
        assert router["service"] in http["services"], name
        assert set(router["entryPoints"]) <= set(static["entryPoints"])
        assert set(router.get("middlewares", [])) <= set(http["middlewares"])
    for service in http["services"].values():
        assert service["loadBalancer"]["serversTransport"] in http["serversTransports"]
    # A router for an existing session has priority over the one for new sessions.
    least = http["routers"]["new-session"]["priority"]
    assert all(http["routers"][name]["priority"] > least for name in BRIDGES)
    check = http["services"]["new-session"]["loadBalancer"]["healthCheck"]
    assert check["path"] == "/health/ready"


def test_session_ids_begin_with_the_name_that_balancers_route_by() -> None:
    """Without BRIDGE_NAME, polls of a session would reach any bridge."""
    known = {environment_name(name) for name in Settings.model_fields}

    assert "BRIDGE_NAME" in known
    for path in (NGINX, HAPROXY, BALANCERS / "traefik-bridges.yaml"):
        assert "BRIDGE_NAME" in path.read_text()
