"""
Where a Redis or Valkey is, as BRIDGE_INBOX names it.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]           one server
    redis+sentinel://HOST[:PORT][,…]/SERVICE[/DB]      its master, found by Sentinels
    redis+cluster://HOST[:PORT][,…]                    a cluster, found by any of its nodes

Each with `rediss` for TLS. Options behind a `?`: `replicas=N` (so many replicas must have
what is acked), `ca=FILE` (whose certificates are trusted), `cert=FILE` and `key=FILE` (ours,
for a server that asks for one), `sentinel_user=`, `sentinel_password=`.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote

SCHEMES: Final = (
    "redis",
    "rediss",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_OPTIONS: Final = (
    "replicas",
    "ca",
    "cert",
    "key",
    "sentinel_user",
    "sentinel_password",
)
_TLS_OPTIONS: Final = ("ca", "cert", "key")


@dataclass(frozen=True, slots=True)
class Host:
    """One host and port."""

    name: str
    port: int

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """
    Everything that it takes to get there.

    Attributes:
        kind: "server", "sentinel" or "cluster".
        hosts: The server, some Sentinels, or some nodes; at least one.
        has_tls: Whether to speak TLS.
        user: To log in as; ``None`` = the default user.
        password: ``None`` = no log-in.
        db: The number of the database; 0 for a cluster.
        service: What the Sentinels call the master; empty without them.
        replicas: How many replicas must have what is acked.
        ca_file: Whose certificates are trusted; ``None`` = the system's.
        cert_file: The certificate that is shown to servers; ``None`` = none is.
        key_file: Its key; ``None`` = it is in the same file.
        sentinel_user: To log in to the Sentinels as.
        sentinel_password: ``None`` = no log-in there.

    """

    kind: str
    hosts: tuple[Host, ...]
    has_tls: bool = False
    user: str | None = None
    password: str | None = None
    db: int = 0
    service: str = ""
    replicas: int = 0
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    sentinel_user: str | None = None
    sentinel_password: str | None = None

    def __str__(self) -> str:
        """Write it as a setting, without user and password."""
        scheme = "rediss" if self.has_tls else "redis"
        if self.kind != "server":
            scheme += f"+{self.kind}"
        path = f"/{self.service}" if self.service else ""
        if self.db:
            path += f"/{self.db}"
        return f"{scheme}://{','.join(map(str, self.hosts))}{path}"


def is_redis(setting: str) -> bool:
    """Say whether this value of BRIDGE_INBOX means a Redis, well-formed or not."""
    return setting.partition(":")[0] in SCHEMES


def parse_redis(setting: str) -> RedisAddress:
    """
    Read an address.

    Raises:
        ValueError: If it is none; the text says what is wrong, and never a password.

    """
    scheme, _, kind = setting.partition(":")[0].partition("+")
    kind = kind or "server"
    # By hand: several hosts are no URL for urlsplit, least of all with an IPv6 address.
    before, _, query = setting.partition("://")[2].partition("?")
    place, _, path = before.partition("/")
    is_option = query.partition("=")[0] in _OPTIONS
    if "@" not in place and ("@" in path or ("@" in query and not is_option)):
        # What looks like a port or an option is a piece of the password then.
        problem = "an @ behind a / or ?; in a password they are written %2F and %3F"
        raise _wrong(kind, problem)
    try:
        options = (
            dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
            if query
            else {}
        )
    except ValueError as exc:
        raise _wrong(kind, str(exc)) from exc
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise _wrong(
            kind, f"unknown option {unknown[0]!r}, known are {', '.join(_OPTIONS)}"
        )
    _see_that_they_fit(options, kind, has_tls=scheme == "rediss")
    log_in, _, hosts_text = place.rpartition("@")
    user, _, password = log_in.partition(":")
    default_port = _SENTINEL_PORT if kind == "sentinel" else _PORT
    hosts = tuple(_host(text, default_port, kind) for text in hosts_text.split(","))
    if kind == "server" and len(hosts) > 1:
        raise _wrong(kind, "several hosts")
    service, db = _path(path, kind)
    return RedisAddress(
        kind=kind,
        hosts=hosts,
        has_tls=scheme == "rediss",
        user=unquote(user) or None,
        password=unquote(password) or None,
        db=db,
        service=service,
        replicas=_number(options.get("replicas", "0"), "replicas", kind),
        ca_file=options.get("ca"),
        cert_file=options.get("cert"),
        key_file=options.get("key"),
        sentinel_user=options.get("sentinel_user"),
        sentinel_password=options.get("sentinel_password"),
    )


def _see_that_they_fit(options: dict[str, str], kind: str, *, has_tls: bool) -> None:
    idle = [name for name in _TLS_OPTIONS if name in options and not has_tls]
    if idle:
        # Whoever names an authority believes that nobody can listen.
        raise _wrong(kind, f"{idle[0]}= is for TLS, and that is rediss", tls=True)
    if "key" in options and "cert" not in options:
        raise _wrong(kind, "key= without cert=", tls=has_tls)


def _path(path: str, kind: str) -> tuple[str, int]:
    parts = [unquote(part) for part in path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not parts:
            raise _wrong(kind, "no service")
        service = parts.pop(0)
    if len(parts) > 1 or (parts and kind == "cluster"):
        raise _wrong(kind, f"{path!r} behind the hosts")
    return service, _number(parts[0], "the database", kind) if parts else 0


def _host(text: str, default_port: int, kind: str) -> Host:
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        name, port = text, str(default_port)
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]  # IPv6
    if not name:
        raise _wrong(kind, "no host")
    if "[" in name or "]" in name or not _can_be_asked_for(name):
        raise _wrong(kind, f"{name!r} is no host")
    if not port.isdecimal() or len(port) > 5:
        # Not shown: where the host was forgotten it is the password.
        raise _wrong(kind, "the port is no number")
    number = int(port)
    if not 0 < number < 65536:
        raise _wrong(kind, f"{number} is no port")
    return Host(name, number)


def _can_be_asked_for(name: str) -> bool:
    """Whether DNS can have it; what it cannot have, Python refuses in a way of its own."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def _number(text: str, what: str, kind: str) -> int:
    if not text.isdecimal() or len(text) > 5:
        raise _wrong(kind, f"{what} is {text!r}, expected a number")
    return int(text)


_FORMS: Final = {
    "server": "redis://[USER:PASSWORD@]HOST[:PORT][/DB]",
    "sentinel": "redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,...]/SERVICE[/DB]",
    "cluster": "redis+cluster://[USER:PASSWORD@]HOST[:PORT][,...]",
}


def _wrong(kind: str, problem: str, *, tls: bool = False) -> ValueError:
    form = _FORMS[kind].replace("redis", "rediss", 1) if tls else _FORMS[kind]
    return ValueError(f"{problem}; expected {form}")
