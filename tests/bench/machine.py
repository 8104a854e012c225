"""Hardware and software versions of a run, without the name of the machine."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import orjson

from bridge.demo.node_setup import find_rabbitmq
from tests.bench import go_peer
from tests.bench.servers import ROOT, Processors

_PYTHON_PACKAGES = (
    "aio-pika", "aiohttp", "orjson", "python-socketio", "uvloop",
)  # fmt: skip
_NODE_PACKAGES = ("amqplib", "socket.io", "ws", "jsonwebtoken")


def machine_facts(pin: Processors) -> Mapping[str, str]:
    """Return names and values for the report."""
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return {
        "processor": f"{_processor()}, {os.cpu_count()} of them",
        "kernel": platform.release(),
        "server pinned to": pin.server,
        "broker, worker and windows pinned to": pin.others,
        "load before the run (1, 5, 15 minutes)": load,
        "RabbitMQ": _rabbitmq(),
        "Python": f"{platform.python_version()}; {_python_packages()}",
        "Node": f"{_node()}; {_node_packages()}",
    } | ({} if go_peer.missing_here() else {"Go": go_peer.version_facts()})


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _rabbitmq() -> str:
    for path in find_rabbitmq().resolve().parent.glob("**/plugins/rabbit-[0-9]*"):
        return path.name.removeprefix("rabbit-").removesuffix(".ez")
    return "unknown version"


def _python_packages() -> str:
    return ", ".join(f"{name} {version(name)}" for name in _PYTHON_PACKAGES)


def _node() -> str:
    command = ["node", "--version"]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()


def _node_packages() -> str:
    lock = orjson.loads((ROOT / "tests" / "package-lock.json").read_bytes())
    packages = lock["packages"]
    return ", ".join(
        f"{name} {packages[f'node_modules/{name}']['version']}"
        for name in _NODE_PACKAGES
    )
