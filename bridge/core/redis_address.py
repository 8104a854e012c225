"""
The address of a Redis or Valkey, as BRIDGE_INBOX names it.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]           one server
    redis+sentinel://HOST[:PORT][,...]/SERVICE[/DB]    the master of a service, by Sentinels
    redis+cluster://HOST[:PORT][,...]                  a cluster, by any of its nodes

Each scheme exists with `rediss` for TLS. Options after a `?`: `replicas=N` (how many replicas
must have a message before it is acked), `ca=FILE` (the authorities to trust), `cert=FILE` and
`key=FILE` (the client certificate, for a server that requires one), `sentinel_user=` and
`sentinel_password=`.
"""

from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, unquote

_FORMS: Final = {
    "server": "redis://[USER:PASSWORD@]HOST[:PORT][/DB]",
    "sentinel": "redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,...]/SERVICE[/DB]",
    "cluster": "redis+cluster://[USER:PASSWORD@]HOST[:PORT][,...]",
}
SCHEMES: Final = tuple(
    scheme if kind == "server" else f"{scheme}+{kind}"
    for kind in _FORMS
    for scheme in ("redis", "rediss")
)
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_TLS_OPTIONS: Final = ("ca", "cert", "key")
_OPTIONS: Final = ("replicas", *_TLS_OPTIONS, "sentinel_user", "sentinel_password")


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
    A parsed address.

    Attributes:
        kind: "server", "sentinel" or "cluster".
        hosts: The server, some Sentinels, or some nodes; at least one.
        has_tls: Whether to use TLS.
        user: The user to log in as; ``None`` = the default user.
        password: ``None`` = no login.
        db: The number of the database; 0 for a cluster.
        service: The name of the master at the Sentinels; empty without them.
        replicas: How many replicas must have a message before it is acked.
        ca_file: The trusted authorities; ``None`` = those of the system.
        cert_file: The client certificate; ``None`` = none.
        key_file: Its key; ``None`` = in the same file.
        sentinel_user: The user to log in to the Sentinels as.
        sentinel_password: ``None`` = no login to the Sentinels.

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

    def without_login(self) -> "RedisAddress":
        """Return it without logins and TLS files: equal for two logins to one store."""
        return replace(
            self,
            user=None,
            password=None,
            ca_file=None,
            cert_file=None,
            key_file=None,
            sentinel_user=None,
            sentinel_password=None,
        )

    def __str__(self) -> str:
        """Return it as a setting, without user and password."""
        scheme = "rediss" if self.has_tls else "redis"
        if self.kind != "server":
            scheme += f"+{self.kind}"
        path = f"/{self.service}" if self.service else ""
        if self.db:
            path += f"/{self.db}"
        return f"{scheme}://{','.join(map(str, self.hosts))}{path}"


def is_redis(setting: str) -> bool:
    """Return whether this value of BRIDGE_INBOX names a Redis, well-formed or not."""
    return setting.partition(":")[0] in SCHEMES


def parse_redis(setting: str) -> RedisAddress:
    """
    Parse an address.

    Raises:
        ValueError: If it is malformed; the text never contains the password.

    """
    scheme, _, kind = setting.partition(":")[0].partition("+")
    kind = kind or "server"
    # Not by urlsplit, which rejects several hosts if one is an IPv6 address.
    before, _, query = setting.partition("://")[2].partition("?")
    location, _, path = before.partition("/")
    is_option = query.partition("=")[0] in _OPTIONS
    if "@" not in location and ("@" in path or ("@" in query and not is_option)):
        # The part that looks like a port or an option belongs to an unescaped password.
        problem = "an @ after a / or ?; in a password write these as %2F and %3F"
        raise _wrong(kind, problem)
    options: dict[str, str] = {}
    try:
        if query:
            options |= parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError as exc:
        raise _wrong(kind, str(exc)) from exc
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise _wrong(
            kind, f"unknown option {unknown[0]!r}, expected {', '.join(_OPTIONS)}"
        )
    _check_tls_options(options, kind, has_tls=scheme == "rediss")
    login, _, hosts_text = location.rpartition("@")
    user, _, password = login.partition(":")
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


def _check_tls_options(options: dict[str, str], kind: str, *, has_tls: bool) -> None:
    unused = [name for name in _TLS_OPTIONS if name in options and not has_tls]
    if unused:
        # A user who sets one expects encryption, so ignoring it would be dangerous.
        raise _wrong(kind, f"{unused[0]}= is for TLS, and that is rediss", tls=True)
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
        raise _wrong(kind, f"{path!r} after the hosts")
    return service, _number(parts[0], "the database", kind) if parts else 0


def _host(text: str, default_port: int, kind: str) -> Host:
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        name, port = text, str(default_port)
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]  # IPv6
    if not name:
        raise _wrong(kind, "no host")
    if "[" in name or "]" in name or not _is_valid_for_dns(name):
        raise _wrong(kind, f"{name!r} is not a host")
    if not port.isdecimal() or len(port) > 5:
        # The text is not shown: if the host is missing, it is the password.
        raise _wrong(kind, "the port is not a number")
    number = int(port)
    if not 0 < number < 65536:
        raise _wrong(kind, f"{number} is not a port")
    return Host(name, number)


def _is_valid_for_dns(name: str) -> bool:
    """Check here, because Python reports such a name by a UnicodeError when it connects."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def _number(text: str, name: str, kind: str) -> int:
    if not text.isdecimal() or len(text) > 5:
        raise _wrong(kind, f"{name} is {text!r}, expected a number")
    return int(text)


def _wrong(kind: str, problem: str, *, tls: bool = False) -> ValueError:
    form = _FORMS[kind].replace("redis", "rediss", 1) if tls else _FORMS[kind]
    return ValueError(f"{problem}; expected {form}")
