"""
`compose/kubernetes/`: the form of the manifests, and what in them has to fit.

The form is judged by kubernetes-validate, which carries Kubernetes's own schemas. Nothing
here was ever given to a cluster.
"""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bridge.metrics import Metrics
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from bridge.settings.values import parse_duration_s

FOLDER = Path(__file__).parents[2] / "compose" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
VERSIONS = ("1.30", "1.35")


def documents() -> list[dict[str, Any]]:
    return [
        document for path in FILES for document in yaml.safe_load_all(path.read_text())
    ]


def the(kind: str, name: str = "bridge") -> dict[str, Any]:
    """Return the one manifest of that kind and name."""
    [found] = [
        each
        for each in documents()
        if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = the("Deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    [found] = pod()["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kubernetes_accepts_the_form(path: Path, version: str) -> None:
    """A field that is misspelt is left out in silence by some versions."""
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_form_is_really_judged() -> None:
    """The tool would otherwise be content with everything."""
    deployment = the("Deployment")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 60

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


def test_the_bridge_accepts_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the ConfigMap, the Secret and the image."""
    sources = container()["envFrom"]
    image = {"BRIDGE_HOST": "0.0.0.0", "BRIDGE_OPERATOR_HOST": "0.0.0.0"}
    config = the("ConfigMap", sources[0]["configMapRef"]["name"])["data"]
    secret = the("Secret", sources[1]["secretRef"]["name"])["stringData"]
    assert not set(config) & set(secret)
    for name, value in (image | config | secret).items():
        monkeypatch.setenv(name, value)

    settings = load_settings()

    assert settings.inbox.startswith("redis://")
    assert settings.operator_token is not None


def test_services_tell_the_bridge_nothing_by_its_environment() -> None:
    """A Service named "bridge" would set BRIDGE_PORT to tcp://...: no start."""
    assert pod()["enableServiceLinks"] is False


def test_kubernetes_waits_longer_than_the_bridge_drains() -> None:
    """Otherwise SIGKILL comes in the middle of it; preStop counts as well."""
    drain_s = parse_duration_s(the("ConfigMap")["data"]["BRIDGE_DRAIN_TIMEOUT"])
    _, pause = container()["lifecycle"]["preStop"]["exec"]["command"]

    assert pod()["terminationGracePeriodSeconds"] >= float(pause) + drain_s + 10


def test_selectors_mean_these_pods() -> None:
    """And every policy is about them."""
    template = the("Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    selectors = [
        the("Deployment")["spec"]["selector"]["matchLabels"],
        the("Service")["spec"]["selector"],
        the("Service", "bridge-operator")["spec"]["selector"],
        the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(
            each["labelSelector"]["matchLabels"]
            for each in pod()["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert selector == labels


def test_the_world_reaches_the_public_port_alone() -> None:
    """Operators have a Service of their own, and a policy says who may use it."""
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    fields = Settings.model_fields
    assert ports == {
        "public": fields["port"].default,
        "operator": fields["operator_port"].default,
    }
    [public] = the("Service")["spec"]["ports"]
    assert public["targetPort"] == "public"
    for name in ("bridge", "bridge-operator"):
        assert the("Service", name)["spec"].get("type", "ClusterIP") == "ClusterIP"
    [rule] = the("Ingress")["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["path"] == "/socket.io/"
    assert path["backend"]["service"] == {"name": "bridge", "port": {"name": "public"}}
    for each in the("NetworkPolicy")["spec"]["ingress"]:
        is_public = [port["port"] for port in each["ports"]] == ["public"]
        assert is_public or each["from"]


def test_a_probe_that_fails_does_not_end_a_bridge_whose_broker_is_away() -> None:
    """Readiness takes it out; only a loop that hangs is a reason to start anew."""
    probes = container()

    assert probes["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    for name in ("livenessProbe", "startupProbe"):
        assert probes[name]["httpGet"]["path"] == "/health/live"
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        assert probes[name]["httpGet"]["port"] == "public"


def test_the_container_has_no_rights_that_it_does_not_need() -> None:
    """As in compose: no root, nothing written but /tmp."""
    own = container()["securityContext"]

    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {pod()['securityContext']['runAsUser']} " in (
        (FOLDER.parent / "Dockerfile").read_text()
    )
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod()["automountServiceAccountToken"] is False


def test_bridges_are_counted_by_a_metric_that_there_is() -> None:
    """Renamed, the number of bridges would stay what it was for ever."""
    spec = the("HorizontalPodAutoscaler")["spec"]
    [metric] = spec["metrics"]

    rendered = Metrics().render().decode()
    assert f"# TYPE {metric['pods']['metric']['name']} gauge" in rendered
    assert spec["scaleTargetRef"]["name"] == the("Deployment")["metadata"]["name"]
    assert "replicas" not in the("Deployment")["spec"]
