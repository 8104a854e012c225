"""
`compose/balancers/`: what nginx and HAProxy accept, and what has to fit the bridge.

They run in `tests/integration/balancers`. Traefik does not, there being no package of it:
what is known of it is here.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.settings.model import Settings
from bridge.settings.names import environment_name
from bridge.settings.values import parse_duration_s
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
    """Return the duration that stands behind `name` in nginx's or HAProxy's text."""
    [found] = set(re.findall(rf"(?m)^\s*{name}\s+(\w+);?$", text))
    return parse_duration_s(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_balancer_accepts_its_configuration(kind: str, tmp_path: Path) -> None:
    """All three bridges, with addresses in place of names that nobody resolves here."""
    write_config(kind, tmp_path, port=8000, bridge_ports=[8001, 8002, 8003])
    check = "-t" if kind == "nginx" else "-c"

    done = subprocess.run(
        [*command(kind, tmp_path), check],
        check=False,
        capture_output=True,
        timeout=60,
    )

    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    assert "warn" not in said.lower(), said


def test_nginx_accepts_the_configuration_of_one_bridge(tmp_path: Path) -> None:
    """It names an address and a folder for its log; the rest is as it is shipped."""
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
    """A proxy that gives up first looks like a bad network."""
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


def test_every_balancer_knows_the_same_bridges() -> None:
    """And the fleet's compose file starts just these."""
    nginx, haproxy = NGINX.read_text(), HAPROXY.read_text()
    http = traefik()["http"]

    ways = re.findall(r'"~\^([\w-]+)\\\." ([\w-]+);', nginx)
    assert ways == [(name, name) for name in BRIDGES]
    for name in BRIDGES:
        assert f"upstream {name} {{ server {name}:8080;" in nginx
    one_of = nginx[nginx.index("upstream new_session") :]
    one_of = one_of[: one_of.index("}")]
    assert re.findall(r"server ([\w-]+):8080 ", one_of) == BRIDGES

    servers = re.findall(r"(?m)^    server ([\w-]+) ([\w-]+):8080$", haproxy)
    assert servers == [(name, name) for name in BRIDGES] * 2

    urls = [f"http://{name}:8080" for name in BRIDGES]
    for name, url in zip(BRIDGES, urls, strict=True):
        assert http["services"][name]["loadBalancer"]["servers"] == [{"url": url}]
        assert http["routers"][name]["service"] == name
        assert f"QueryRegexp(`sid`, `^{name}\\.`)" in http["routers"][name]["rule"]
    new = http["services"]["new-session"]["loadBalancer"]
    assert [each["url"] for each in new["servers"]] == urls


def test_traefik_s_parts_refer_to_parts_that_are_there() -> None:
    """It would start, and answer 404 or 500."""
    static, http = traefik("traefik.yaml"), traefik()["http"]

    for name, router in http["routers"].items():
        assert router["service"] in http["services"], name
        assert set(router["entryPoints"]) <= set(static["entryPoints"])
        assert set(router.get("middlewares", [])) <= set(http["middlewares"])
    for service in http["services"].values():
        assert service["loadBalancer"]["serversTransport"] in http["serversTransports"]
    # One that names a session wins over the one for all.
    least = http["routers"]["new-session"]["priority"]
    assert all(http["routers"][name]["priority"] > least for name in BRIDGES)
    check = http["services"]["new-session"]["loadBalancer"]["healthCheck"]
    assert check["path"] == "/health/ready"


def test_a_session_s_id_begins_as_the_balancers_expect() -> None:
    """The name and a dot; without names every poll would come to any bridge."""
    known = {environment_name(name) for name in Settings.model_fields}

    assert "BRIDGE_NAME" in known
    for path in (NGINX, HAPROXY, BALANCERS / "traefik-bridges.yaml"):
        assert "BRIDGE_NAME" in path.read_text()
