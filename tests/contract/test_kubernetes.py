"""
The manifests in `compose/kubernetes/` are valid and consistent with the bridge.

kubernetes-validate checks them with Kubernetes's own schemas. They were never applied to a
cluster.
"""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bridge.core.durations import parse_duration_s
from bridge.errors import ConfigError
from bridge.metrics import Metrics
from bridge.settings.load import load_settings
from bridge.settings.model import Settings

FOLDER = Path(__file__).parents[2] / "compose" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
VERSIONS = ("1.30", "1.35")
_KEYS = ("BRIDGE_JWT_SECRET", "BRIDGE_OPERATOR_TOKEN", "BRIDGE_API_KEY")


def documents() -> list[dict[str, Any]]:
    return [
        document for path in FILES for document in yaml.safe_load_all(path.read_text())
    ]


def manifest(kind: str, name: str = "bridge") -> dict[str, Any]:
    """Return the manifest with this kind and name."""
    [found] = [
        each
        for each in documents()
        if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("Deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    [found] = pod()["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_manifests_are_valid(path: Path, version: str) -> None:
    """Some versions of Kubernetes silently ignore a misspelled field."""
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validation_detects_an_unknown_field() -> None:
    """A tool that accepts everything would prove nothing."""
    deployment = manifest("Deployment")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 60

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


def test_the_bridge_accepts_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment comes from the ConfigMap, the Secret and the image."""
    sources = container()["envFrom"]
    image = {"BRIDGE_HOST": "0.0.0.0", "BRIDGE_OPERATOR_HOST": "0.0.0.0"}
    config = manifest("ConfigMap", sources[0]["configMapRef"]["name"])["data"]
    secret = manifest("Secret", sources[1]["secretRef"]["name"])["stringData"]
    assert not set(config) & set(secret)
    for name, value in (image | config | secret).items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError) as refused:
        load_settings()
    for name in _KEYS:
        monkeypatch.setenv(name, f"{name}-of-the-tests-with-32-bytes")
    settings = load_settings()

    # The secrets of the example are public.
    assert [text.partition(":")[0] for text in refused.value.problems] == list(_KEYS)
    assert settings.inbox.startswith("redis://")
    assert settings.operator_token is not None


def test_service_links_are_disabled() -> None:
    """A Service named "bridge" would set BRIDGE_PORT to tcp://..., an invalid value."""
    assert pod()["enableServiceLinks"] is False


def test_kubernetes_waits_longer_than_the_bridge_drains() -> None:
    """Otherwise SIGKILL interrupts the drain. The time of preStop counts as well."""
    drain_s = parse_duration_s(manifest("ConfigMap")["data"]["BRIDGE_DRAIN_TIMEOUT"])
    _, pause = container()["lifecycle"]["preStop"]["exec"]["command"]

    assert pod()["terminationGracePeriodSeconds"] >= float(pause) + drain_s + 10


def test_all_selectors_match_the_labels_of_the_pods() -> None:
    """A selector without a match has no effect, and no error."""
    template = manifest("Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    selectors = [
        manifest("Deployment")["spec"]["selector"]["matchLabels"],
        manifest("Service")["spec"]["selector"],
        manifest("Service", "bridge-operator")["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(
            each["labelSelector"]["matchLabels"]
            for each in pod()["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert selector == labels


def test_only_the_public_port_is_reachable_from_outside() -> None:
    """Operators have a Service of their own, restricted by a network policy."""
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    fields = Settings.model_fields
    assert ports == {
        "public": fields["port"].default,
        "operator": fields["operator_port"].default,
    }
    [public] = manifest("Service")["spec"]["ports"]
    assert public["targetPort"] == "public"
    for name in ("bridge", "bridge-operator"):
        assert manifest("Service", name)["spec"].get("type", "ClusterIP") == "ClusterIP"
    [rule] = manifest("Ingress")["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["path"] == "/socket.io/"
    assert path["backend"]["service"] == {"name": "bridge", "port": {"name": "public"}}
    for each in manifest("NetworkPolicy")["spec"]["ingress"]:
        is_public = [port["port"] for port in each["ports"]] == ["public"]
        assert is_public or each["from"]


def test_a_broker_outage_does_not_restart_bridges() -> None:
    """The readiness probe removes a bridge from the Service; liveness checks the loop only."""
    probes = container()

    assert probes["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    for name in ("livenessProbe", "startupProbe"):
        assert probes[name]["httpGet"]["path"] == "/health/live"
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        assert probes[name]["httpGet"]["port"] == "public"


def test_the_container_has_least_privileges() -> None:
    """As in compose: no root, and a read-only file system except /tmp."""
    own = container()["securityContext"]

    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {pod()['securityContext']['runAsUser']} " in (
        (FOLDER.parent / "Dockerfile").read_text()
    )
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod()["automountServiceAccountToken"] is False


def test_the_autoscaler_uses_an_existing_metric() -> None:
    """With an unknown metric, the number of bridges would never change."""
    spec = manifest("HorizontalPodAutoscaler")["spec"]
    [metric] = spec["metrics"]

    rendered = Metrics().render().decode()
    assert f"# TYPE {metric['pods']['metric']['name']} gauge" in rendered
    assert spec["scaleTargetRef"]["name"] == manifest("Deployment")["metadata"]["name"]
    assert "replicas" not in manifest("Deployment")["spec"]
