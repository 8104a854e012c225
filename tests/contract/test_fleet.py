"""
Check `compose/fleet.yaml` without a Docker engine.

Names, addresses and numbers must be consistent, and the bridge must accept its settings.
The load balancers run in `tests/integration/balancers`.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.amqp.shards.hashing import MODULUS, preferred_hash_type
from bridge.core.durations import parse_duration_s
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from tests.contract.test_compose import COMPOSE, interpolate

BRIDGES = ["bridge-1", "bridge-2", "bridge-3"]
NODES = ["rabbitmq-1", "rabbitmq-2", "rabbitmq-3"]


class Secrets(dict[str, str]):
    """All required variables, as `make-env` would generate them."""

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 - as a dict's
        """Return a secret for a variable without a default."""
        is_optional = name in {
            "BRIDGE_ALLOWED_ORIGINS",
            "PUBLIC_ADDRESS",
            "VALKEY_MEMORY",
        }
        return None if is_optional else f"{name.lower()}-0123456789abcdef0123456789"


def fleet() -> dict[str, Any]:
    """Return the file as compose sees it."""
    text = interpolate((COMPOSE / "fleet.yaml").read_text(), Secrets())
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


def test_every_path_and_every_name_exists() -> None:
    """Docker would create an empty folder in place of a missing file."""
    tree = fleet()

    for name, service in tree["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).is_file(), source
            else:
                assert source in tree["volumes"]
        assert set(service.get("depends_on", [])) <= set(tree["services"]), name
        assert set(service.get("secrets", [])) <= set(tree["secrets"])
        if "build" in service:
            build = service["build"]
            path = COMPOSE / build["context"] / build["dockerfile"]
            assert path.samefile(COMPOSE / "Dockerfile")


def test_all_published_ports_are_on_loopback_by_default() -> None:
    """Ports that Docker publishes bypass the host's firewall."""
    services = fleet()["services"]
    text = (COMPOSE / "fleet.yaml").read_text()

    published = [
        (name, port)
        for name, service in services.items()
        for port in service.get("ports", [])
    ]
    assert len({port.rsplit(":", 1)[0] for _, port in published}) == len(published)
    assert all(port.startswith("127.0.0.1:") for _, port in published)
    assert re.findall(r'"\$\{PUBLIC_ADDRESS.*', text) == [
        '"${PUBLIC_ADDRESS:-127.0.0.1}:8080:80"'
    ]
    assert services["haproxy"]["ports"] == ["127.0.0.1:8080:80"]
    # Only the balancer reaches the public port of a bridge.
    inside = {port.rsplit(":", 1)[1] for name, port in published if name in BRIDGES}
    assert inside == {str(Settings.model_fields["operator_port"].default)}


@pytest.mark.parametrize("name", BRIDGES)
def test_each_bridge_accepts_its_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is the one that the balancer uses."""
    service = fleet()["services"][name]
    image = {"BRIDGE_HOST": "0.0.0.0", "BRIDGE_OPERATOR_HOST": "0.0.0.0"}
    for variable, value in (image | service["environment"]).items():
        monkeypatch.setenv(variable, value or "")  # an empty YAML value is null

    settings = load_settings()

    assert settings.name == name
    assert settings.inbox.startswith("redis://:valkey_password-")
    assert settings.inbox.endswith("@valkey:6379/0")
    hosts = [url.get_secret_value().rpartition("@")[2] for url in settings.amqp_url]
    assert hosts == [f"{node}:5672/" for node in NODES]
    assert parse_duration_s(service["stop_grace_period"]) > settings.drain_timeout


def test_bridges_differ_by_their_names_only() -> None:
    """The balancer may route a window to any bridge."""
    services = fleet()["services"]
    environments = [services[name]["environment"] for name in BRIDGES]

    assert [each.pop("BRIDGE_NAME") for each in environments] == BRIDGES
    assert environments[0] == environments[1] == environments[2]
    assert {name for name in services if name.startswith("bridge")} == set(BRIDGES)


def test_bridges_trust_the_balancer_which_uses_the_tested_file() -> None:
    """The balancer has a fixed address, so that bridges can trust it."""
    tree = fleet()
    haproxy = tree["services"]["haproxy"]
    [network] = tree["networks"]["default"]["ipam"]["config"]
    address = haproxy["networks"]["default"]["ipv4_address"]

    for name in BRIDGES:
        trusted = tree["services"][name]["environment"]["BRIDGE_TRUSTED_PROXIES"]
        assert trusted.split(",") == [address, network["gateway"]]
    assert haproxy["volumes"][0].startswith("./balancers/haproxy.cfg:")


def test_the_store_is_durable() -> None:
    """Eviction or delayed writes would lose messages that RabbitMQ has already removed."""
    words = fleet()["services"]["valkey"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_the_nodes_of_rabbitmq_find_each_other() -> None:
    """Nodes use host names, which are the names of the services."""
    services = fleet()["services"]
    text = (COMPOSE / "rabbitmq-cluster.conf").read_text()

    listed = re.findall(r"classic_config\.nodes\.\d = rabbit@(\S+)", text)
    assert listed == NODES
    assert [services[node]["hostname"] for node in NODES] == NODES
    cookies = {services[n]["environment"]["RABBITMQ_ERLANG_COOKIE"] for n in NODES}
    assert len(cookies) == 1
    data = {services[node]["volumes"][0].split(":")[0] for node in NODES}
    assert len(data) == len(NODES)


def test_rabbitmq_supports_shards_without_a_plugin() -> None:
    """No plugin is enabled here; without support for its hash type no bridge would start."""
    tree = fleet()
    assert int(tree["services"]["bridge-1"]["environment"]["BRIDGE_SHARDS"]) > 1

    for node in NODES:
        image = tree["services"][node]["image"]
        version = image.removeprefix("rabbitmq:").removesuffix("-management")
        assert preferred_hash_type(version) == MODULUS
        assert [int(part) for part in version.split(".")] >= [4, 3]


def test_prometheus_scrapes_every_bridge() -> None:
    """The alerts are those of a single bridge."""
    path = COMPOSE / "monitoring" / "prometheus-fleet.yml"
    tree = yaml.safe_load(path.read_text())
    [job] = tree["scrape_configs"]
    [targets] = job["static_configs"]

    assert targets["targets"] == [f"{name}:8081" for name in BRIDGES]
    mounted = {Path(v.split(":")[0]).name for v in volumes("prometheus")}
    assert {path.name, *tree["rule_files"]} <= mounted
    assert job["job_name"] == "bridge", "alerts use this name"


def volumes(name: str) -> list[str]:
    """Return the volumes of a service."""
    return list(fleet()["services"][name]["volumes"])
