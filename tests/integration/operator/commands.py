"""Commands as an operator types them, in a process of their own."""

import os
import subprocess
import sys

from tests.conftest import SLOW_FACTOR
from tests.integration.running import OPERATOR_TOKEN, RunningBridge


def environment(running: RunningBridge) -> dict[str, str]:
    """Return what a terminal next to the bridge would have set."""
    url = running.listening.operator_url
    return {
        **{name: text for name, text in os.environ.items() if "BRIDGE" not in name},
        "BRIDGE_OPERATOR_PORT": url.rpartition(":")[2],
        "BRIDGE_OPERATOR_TOKEN": OPERATOR_TOKEN,
        "COLUMNS": "200",
    }


def run_command(
    running: RunningBridge, *arguments: str, expect: int = 0, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `bridge ARGUMENTS`, check its exit status, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        env=environment(running),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30 * SLOW_FACTOR,
        check=False,
    )
    assert done.returncode == expect, done
    return done
