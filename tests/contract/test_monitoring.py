"""
The configuration in `compose/monitoring/` is valid and uses existing metrics.

Prometheus's own tool checks it. After a rename of a metric in the code, an alert could
otherwise never fire again.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.metrics import Metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "compose" / "monitoring"
OPERATIONS = ROOT / "docs" / "operations.md"
NAME = re.compile(r"\b(?:bridge|process)_[a-z_]+\b")
# Suffixes that the Prometheus client adds.
SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_created")


def promtool(*arguments: str, given: bytes = b"") -> str:
    """Run promtool and return its output; fail if it reports a problem."""
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=MONITORING,
        check=False,
        capture_output=True,
        input=given,
        timeout=60,
    )
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def metrics() -> dict[str, str]:
    """Return the names of all metrics, without suffixes, and their types."""
    text = Metrics().render().decode()
    return {
        name.removesuffix("_total"): kind
        for name, kind in re.findall(r"(?m)^# TYPE (\w+) (\w+)$", text)
        if not name.endswith("_created")
    }


def metric_names(text: str) -> set[str]:
    endings = "|".join(SUFFIXES)
    return {re.sub(f"(?:{endings})$", "", name) for name in NAME.findall(text)}


def rules() -> list[dict[str, Any]]:
    tree = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    return [rule for group in tree["groups"] for rule in group["rules"]]


def dashboard_expressions() -> Iterator[str]:
    """Yield the expressions of the dashboard."""
    dashboard = json.loads((MONITORING / "grafana" / "bridge.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_prometheus_accepts_its_configuration() -> None:
    """Prometheus does not start with an invalid configuration."""
    for name in ("prometheus.yml", "prometheus-fleet.yml"):
        promtool("check", "config", "--syntax-only", name)
    promtool("check", "rules", "alerts.yml")


def test_alerts_fire_only_when_there_is_a_problem() -> None:
    """alerts_test.yml has series of a healthy hour and of an hour with problems."""
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_the_metrics_follow_prometheus_conventions() -> None:
    """Promtool checks names, help texts and units."""
    lines = promtool("check", "metrics", given=Metrics().render()).splitlines()

    assert not [line for line in lines if line.startswith("bridge_")]


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, id=rule["alert"]) for rule in rules()]
)
def test_an_alert_uses_existing_metrics(rule: dict[str, Any]) -> None:
    """An alert about a renamed metric would never fire."""
    assert metric_names(rule["expr"]) <= set(metrics())


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, id=rule["alert"]) for rule in rules()]
)
def test_an_alert_links_to_its_runbook(rule: dict[str, Any]) -> None:
    """The on-call engineer reads the runbook first."""
    page, _, anchor = rule["annotations"]["runbook"].partition("#")

    assert (ROOT / page).samefile(OPERATIONS)
    headings = re.findall(r"(?m)^#+ (\w+)$", OPERATIONS.read_text())
    assert anchor in {heading.lower() for heading in headings}
    assert anchor == rule["alert"].lower()


def test_the_dashboard_uses_existing_metrics(tmp_path: Path) -> None:
    """Its expressions are valid PromQL."""
    expressions = [each.replace("$instance", ".*") for each in dashboard_expressions()]
    for expression in expressions:
        assert metric_names(expression) <= set(metrics()), expression

    records = [{"record": f"drawn:{n}", "expr": e} for n, e in enumerate(expressions)]
    path = tmp_path / "drawn.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "drawn", "rules": records}]}))
    promtool("check", "rules", str(path))


def test_every_metric_is_explained() -> None:
    """Operators look up metrics in the table of docs/operations.md."""
    rows = set(re.findall(r"(?m)^\| `(\w+)`", OPERATIONS.read_text()))

    ours = {name for name in metrics() if name.startswith("bridge_")}
    assert {row.removesuffix("_total") for row in rows} >= ours


def test_mounted_files_exist() -> None:
    """Docker would create an empty folder in place of a missing file."""
    tree = yaml.safe_load((MONITORING / "compose.yaml").read_text())

    for service in tree["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (MONITORING.parent / source).is_file(), source
            else:
                assert source in tree["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_promtool_is_installed() -> None:
    """`tools/setup tests` installs it; this failure is clearer than those of other tests."""
    assert shutil.which("promtool")
