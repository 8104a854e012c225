"""
`compose/monitoring/`: what Prometheus reads and warns of, and what Grafana draws.

Judged by Prometheus's own tool. A metric that is renamed in the code would otherwise
leave an alert that can never fire, and nobody would notice.
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
# What Prometheus itself adds.
SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_created")


def promtool(*arguments: str, given: bytes = b"") -> str:
    """Run Prometheus's tool; returns what it said, fails if it was not content."""
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=MONITORING,
        check=False,
        capture_output=True,
        input=given,
        timeout=60,
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def metrics() -> dict[str, str]:
    """Return the names of all metrics, without suffixes, and their types."""
    text = Metrics().render().decode()
    return {
        name.removesuffix("_total"): kind
        for name, kind in re.findall(r"(?m)^# TYPE (\w+) (\w+)$", text)
        if not name.endswith("_created")
    }


def named_in(text: str) -> set[str]:
    endings = "|".join(SUFFIXES)
    return {re.sub(f"(?:{endings})$", "", name) for name in NAME.findall(text)}


def rules() -> list[dict[str, Any]]:
    tree = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    return [rule for group in tree["groups"] for rule in group["rules"]]


def drawn() -> Iterator[str]:
    """Yield the expressions of the dashboard."""
    dashboard = json.loads((MONITORING / "grafana" / "bridge.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_prometheus_accepts_its_configuration() -> None:
    """It would not start otherwise."""
    for name in ("prometheus.yml", "prometheus-fleet.yml"):
        promtool("check", "config", "--syntax-only", name)
    promtool("check", "rules", "alerts.yml")


def test_alerts_fire_in_a_bad_hour_and_not_in_a_good_one() -> None:
    """The two hours stand in alerts_test.yml, minute by minute."""
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_prometheus_likes_what_the_bridge_tells() -> None:
    """Names, helps and units, as its lint wants them."""
    lines = promtool("check", "metrics", given=Metrics().render()).splitlines()

    assert not [line for line in lines if line.startswith("bridge_")]


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, id=rule["alert"]) for rule in rules()]
)
def test_an_alert_speaks_of_metrics_that_there_are(rule: dict[str, Any]) -> None:
    """One about a metric that was renamed is silent for ever."""
    assert named_in(rule["expr"]) <= set(metrics())


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, id=rule["alert"]) for rule in rules()]
)
def test_an_alert_leads_to_what_to_do(rule: dict[str, Any]) -> None:
    """Whoever is woken at night reads that line first."""
    page, _, anchor = rule["annotations"]["runbook"].partition("#")

    assert (ROOT / page).samefile(OPERATIONS)
    headings = re.findall(r"(?m)^#+ (\w+)$", OPERATIONS.read_text())
    assert anchor in {heading.lower() for heading in headings}
    assert anchor == rule["alert"].lower()


def test_the_dashboard_draws_metrics_that_there_are(tmp_path: Path) -> None:
    """And Prometheus understands each of its expressions."""
    expressions = [each.replace("$instance", ".*") for each in drawn()]
    for expression in expressions:
        assert named_in(expression) <= set(metrics()), expression

    records = [{"record": f"drawn:{n}", "expr": e} for n, e in enumerate(expressions)]
    path = tmp_path / "drawn.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "drawn", "rules": records}]}))
    promtool("check", "rules", str(path))


def test_every_metric_is_explained() -> None:
    """The table of docs/operations.md is where operators look a name up."""
    rows = set(re.findall(r"(?m)^\| `(\w+)`", OPERATIONS.read_text()))

    ours = {name for name in metrics() if name.startswith("bridge_")}
    assert {row.removesuffix("_total") for row in rows} >= ours


def test_files_that_containers_mount_are_there() -> None:
    """Docker makes an empty folder out of a file that is missing."""
    tree = yaml.safe_load((MONITORING / "compose.yaml").read_text())

    for service in tree["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (MONITORING.parent / source).is_file(), source
            else:
                assert source in tree["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_promtool_is_there() -> None:
    """`tools/setup tests` installs it; without it the tests above would say so worse."""
    assert shutil.which("promtool")
