"""
The configuration of one private node: ports, files and environment.

The node reads and writes files in its own folder only, listens on loopback only, and
ignores the configuration of a RabbitMQ installed on the system.
"""

import os
import random
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bridge.errors import PrivateNodeError

# The package of Debian and Ubuntu, the official image, a generic tarball, Homebrew on
# Linux. Not /usr/sbin/rabbitmq-server: Debian's wrapper there switches to another user.
USUAL_PLACES: Final = (
    Path("/usr/lib/rabbitmq/bin"),
    Path("/opt/rabbitmq/sbin"),
    Path("/usr/local/lib/rabbitmq/sbin"),
    Path("/usr/local/sbin"),
    Path("/home/linuxbrew/.linuxbrew/sbin"),
)

_HOST: Final = "127.0.0.1"
_LOG_TAIL_LINES: Final = 60

# The applications that every node loads completely, the largest last.
_APPLICATIONS: Final = (
    "recon,aten,os_mon,systemd,jsx,syntax_tools,syslog,public_key,observer_cli,osiris,tools,"
    "ranch,sasl,rabbitmq_prelaunch,cuttlefish,mnesia,xmerl,ra,compiler,inets,rabbit_common,"
    "ssl,stdlib,kernel,rabbit"
)
# The threads of an Erlang VM spin while they wait for work. RabbitMQ turns that off for nodes,
# but not for rabbitmqctl, which takes five times as long on a busy machine.
_NO_BUSY_WAIT: Final = "+sbwt none +sbwtdcpu none +sbwtdio none"
# RabbitMQ loads one module after the other, and looks for each in the folders of 70 plugins:
# that is half of the processor time of a start. The VM that a node runs to start epmd inherits
# the flag, but needs no modules; its boot file tells it apart.
_LOADS_CODE_AT_ONCE: Final = (
    "Folders = [filename:join(Folder, ebin) ||"
    ' init:get_argument(boot) =/= {ok, [["no_dot_erlang"]]},'
    f" A <- [{_APPLICATIONS}],"
    " Folder <- [code:lib_dir(A)], is_list(Folder)],"
    " code:add_pathsa(Folders),"
    ' code:ensure_modules_loaded([list_to_atom(filename:basename(File, ".beam"))'
    ' || Folder <- Folders, File <- filelib:wildcard("*.beam", Folder)]).'
)


def find_rabbitmq(places: Sequence[Path] | None = None) -> Path:
    """
    Return the folder of rabbitmq-server and rabbitmqctl.

    Args:
        places: The folders to search. By default `sbin` of RABBITMQ_HOME, the variable
            that RabbitMQ's own scripts use for their installation, then `USUAL_PLACES`.

    Raises:
        PrivateNodeError: If RabbitMQ is not installed; the text says how to install it.

    """
    if places is None:
        home = os.environ.get("RABBITMQ_HOME")
        places = [*([Path(home) / "sbin"] if home else []), *USUAL_PLACES]
    for place in places:
        if os.access(place / "rabbitmq-server", os.X_OK):
            return place
    looked_in = ", ".join(str(place) for place in places)
    problem = (
        "RabbitMQ is not installed: on Debian and Ubuntu, `sudo apt-get install "
        f"rabbitmq-server` installs it (looked in {looked_in})"
    )
    raise PrivateNodeError(problem)


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Loopback ports of one node."""

    amqp: int
    distribution: int
    epmd: int
    ctl: int


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """
    The folder, ports, login and configuration of one node.

    Attributes:
        folder: Holds all files of the node.
        ports: Its ports.
        host: The address that it listens on.
        user: Its only AMQP user.
        password: The password of the user.
        cookie: The Erlang cookie.
        name: The Erlang node name.
        config: Further lines of rabbitmq.conf, for example a TLS listener.
        plugins: Plugins to enable; without any, the start is fastest.
        starts_epmd: False if the node uses the epmd of another private node.

    """

    folder: Path
    ports: NodePorts
    host: str = _HOST
    user: str = "bridge"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    cookie: str = field(default_factory=lambda: secrets.token_hex(24))
    name: str = field(
        default_factory=lambda: f"bridge-{secrets.token_hex(4)}@localhost"
    )
    config: Sequence[str] = ()
    plugins: Sequence[str] = ()
    starts_epmd: bool = True

    def check_host(self) -> None:
        """
        Check that the host in the node's name leads to its address. May wait for DNS.

        Raises:
            PrivateNodeError: If it does not: Erlang would not find its own node.

        """
        name = self.name.partition("@")[2]
        with suppress(OSError):  # the name is unknown
            if any(
                address[0] == self.host
                for *_, address in socket.getaddrinfo(name, None, socket.AF_INET)
            ):
                return
        problem = (
            f"the name {name} does not lead to {self.host} on this machine, which a private "
            f"RabbitMQ node needs: add the line `{self.host} {name}` to /etc/hosts"
        )
        raise PrivateNodeError(problem)

    def write_files(self) -> None:
        """Write the cookie, the list of plugins, and rabbitmq.conf."""
        cookie = self.folder / ".erlang.cookie"
        cookie.touch(mode=0o600)
        cookie.write_text(self.cookie)
        cookie.chmod(0o400)  # Erlang refuses a cookie that other users can read
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        (self.folder / "env.conf").touch()  # replaces /etc/rabbitmq/rabbitmq-env.conf
        lines = [
            f"listeners.tcp.default = {self.host}:{self.ports.amqp}",
            f"default_user = {self.user}",
            f"default_pass = {self.password}",
            # The default alarms assume a dedicated server.
            "disk_free_limit.absolute = 1MB",
            "vm_memory_high_watermark.relative = 0.7",
            "log.file.level = info",
            *self.config,
        ]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")

    def log_tail(self) -> str:
        """Return the last lines of the logs and the output of node and epmd."""
        lines: list[str] = []
        for name in ("epmd.out", "node.out", "node.log"):
            path = self.folder / name
            if path.exists():
                text = path.read_text(errors="replace").rstrip()
                lines += text.splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join(lines)

    def node_environment(self) -> dict[str, str]:
        """The complete environment of the node itself."""
        environment = self.environment()
        return {
            **environment,
            # With it, the start script replaces itself by the VM (exec) instead of waiting
            # for it, so signals to this process reach the node.
            "RABBITMQ_ALLOW_INPUT": "true",
            "ERL_AFLAGS": f"{environment['ERL_AFLAGS']} -eval '{_LOADS_CODE_AT_ONCE}'",
        }

    def environment(self) -> dict[str, str]:
        """The complete environment of its programs; only PATH comes from this process."""
        folder = self.folder
        return {
            "PATH": f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "ERL_EPMD_ADDRESS": self.host,
            "ERL_EPMD_PORT": str(self.ports.epmd),
            "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
            # For every Erlang VM, including the short-lived helpers of RabbitMQ's scripts.
            "ERL_AFLAGS": f"-kernel inet_dist_use_interface {{127,0,0,1}} {_NO_BUSY_WAIT}",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self.ports.distribution),
            "RABBITMQ_CTL_DIST_PORT_MIN": str(self.ports.ctl),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(self.ports.ctl + 10),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": str(folder / "node.log"),
            "RABBITMQ_PID_FILE": str(folder / "node.pid"),
        }


def new_setup(folder: Path) -> NodeSetup:
    """Return the setup of a node in `folder`, with free ports and a random login."""
    return NodeSetup(folder, free_ports())


def free_ports() -> NodePorts:
    """
    Choose ports that are free now, outside the kernel's range for outgoing connections.

    A client that keeps connecting to a port of that range while the node is down will
    eventually connect to itself (TCP simultaneous open), and the node cannot bind its
    port again.
    """
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    first_outgoing = int(text.split()[0])
    end = first_outgoing if first_outgoing > 12_000 else 65_536
    candidates = random.sample(range(10_000, end), 100)
    free = [port for port in candidates if _is_free(port)]
    amqp, distribution, epmd, ctl = free[:4]
    return NodePorts(amqp=amqp, distribution=distribution, epmd=epmd, ctl=ctl)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True
