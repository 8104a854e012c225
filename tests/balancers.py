"""nginx and HAProxy in front of bridges, with the configurations in compose/."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Final

from bridge.demo.processes import KeptProcesses
from tests.conftest import eventually
from tests.faults.suite.proxy import free_ports

BALANCERS: Final = Path(__file__).parents[1] / "compose" / "balancers"
HAPROXY: Final = BALANCERS / "haproxy.cfg"
NGINX: Final = BALANCERS / "nginx.conf"
KINDS: Final = ("nginx", "haproxy")
_SIZE: Final = 3  # bridges in the shipped configurations


@dataclass(frozen=True)
class Balancer:
    """A running balancer, private to a test."""

    kind: str
    port: int
    folder: Path

    @property
    def url(self) -> str:
        """The URL for pages."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Return its log of requests."""
        name = "access.log" if self.kind == "nginx" else "haproxy.out"
        return (self.folder / name).read_text()


def rendered(kind: str, *, port: int, bridge_ports: Sequence[int]) -> str:
    """
    Return the shipped configuration with the addresses and folders of a test.

    The rest is unchanged, so that the test covers the shipped configuration. Lines of
    bridges that the test does not have are removed.
    """
    text = (NGINX if kind == "nginx" else HAPROXY).read_text()
    for number in range(len(bridge_ports) + 1, _SIZE + 1):
        text = _replaced(text, rf"(?m)^.*\bbridge-{number}\b.*\n", "")
    for number, each in enumerate(bridge_ports, start=1):
        text = _replaced(text, rf"\bbridge-{number}:8080\b", f"127.0.0.1:{each}")
    if kind == "haproxy":
        return _replaced(text, r"(?m)^    bind :80$", f"    bind 127.0.0.1:{port}")
    return for_nginx_here(text, port=port)


def for_nginx_here(text: str, *, port: int) -> str:
    """Return a configuration of nginx with this port and files in the current folder."""
    text = _replaced(text, r"\blisten 80;", f"listen 127.0.0.1:{port};")
    text = _replaced(text, r"/var/log/nginx/\w+\.log", "access.log")
    # The default folders of Debian belong to root.
    folders = "".join(
        f"    {each}_temp_path temporary/{each};\n"
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return _replaced(text, r"(?m)^http \{\n", f"http {{\n{folders}")


def _replaced(text: str, pattern: str, replacement: str) -> str:
    changed, count = re.subn(pattern, replacement, text)
    assert count, f"{pattern} does not match the configuration"
    return changed


def program(kind: str) -> str:
    """Return the path of nginx or haproxy; on Debian it is not in the PATH of users."""
    found = which(kind) or which(kind, path="/usr/sbin:/usr/local/sbin")
    assert found, f"no {kind}: install the package of that name"
    return found


def command(kind: str, folder: Path) -> list[str]:
    """Return the command that runs it in the foreground, in one process, on `folder`."""
    if kind == "haproxy":
        return [program(kind), "-db", "-f", str(folder / "haproxy.cfg")]
    # A single process does not change its user, so a run as root can read its folder.
    globals_ = f"daemon off; master_process off; pid {folder}/nginx.pid;"
    config = ["-c", str(folder / "nginx.conf"), "-e", "stderr"]
    return [program(kind), "-p", f"{folder}/", *config, "-g", globals_]


def write_config(
    kind: str,
    folder: Path,
    *,
    port: int,
    bridge_ports: Sequence[int],
    edit: Callable[[str], str] = str,
) -> None:
    """Write the configuration to the file that `command` uses, changed by `edit`."""
    (folder / "temporary").mkdir()
    name = "nginx.conf" if kind == "nginx" else "haproxy.cfg"
    text = edit(rendered(kind, port=port, bridge_ports=bridge_ports))
    (folder / name).write_text(text)


@asynccontextmanager
async def open_balancer(
    kind: str, *, bridge_ports: Sequence[int], edit: Callable[[str], str] = str
) -> AsyncIterator[Balancer]:
    """Run a balancer on a free port until the end of the block; `edit` its configuration."""
    (port,) = free_ports(1)
    async with KeptProcesses.open() as kept:
        await asyncio.to_thread(
            write_config,
            kind,
            kept.folder,
            port=port,
            bridge_ports=bridge_ports,
            edit=edit,
        )
        await kept.start(kind, command(kind, kept.folder), {})

        async def answers() -> bool:
            kept.take_reports()
            output = kept.folder / f"{kind}.out"
            assert kind in kept.pids, await asyncio.to_thread(output.read_text)
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(answers)
        yield Balancer(kind, port, kept.folder)
