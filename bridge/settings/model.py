"""Every setting, declared once: name, type, default, unit, help and valid values."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from bridge.core.durations import parse_duration_s, render_duration
from bridge.core.listen_hosts import is_wildcard, tcp_hosts, unix_path
from bridge.settings.checks import (
    PUBLIC_KEY_ALGORITHMS,
    check_algorithms,
    check_broker_urls,
    check_events,
    check_hosts,
    check_inbox,
    check_jwks_url,
    check_key,
    check_management_url,
    check_networks,
    check_origins,
    check_retry_delays,
    is_loopback,
    load_public_key_text,
    secret_weakness,
)
from bridge.settings.names import ENVIRONMENT_PREFIX, environment_name, problem_text
from bridge.settings.values import (
    Count,
    Duration,
    Durations,
    DurationsByName,
    Namespace,
    Port,
    Secrets,
    ShardCount,
    Size,
    WholeSeconds,
    Words,
)

# RFC 7518 section 3.2: a key is at least as long as the hash.
_SECRET_MIN_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}

Hosts = Annotated[Words, AfterValidator(check_hosts)]
_Key = Annotated[SecretStr, AfterValidator(check_key)]


def _reloadable(default: Any, help_: str) -> Any:
    return Field(default, description=help_, json_schema_extra={"reload": "yes"})


def _fixed(default: Any, help_: str, **bounds: Any) -> Any:
    return Field(default, description=help_, json_schema_extra={"reload": ""}, **bounds)


def _fixed_except_login(default: Any, help_: str) -> Any:
    return Field(default, description=help_, json_schema_extra={"reload": "login"})


class Settings(BaseSettings):
    """
    The settings of one bridge, checked and frozen.

    Use `load_settings` to construct it from all sources.
    """

    model_config = SettingsConfigDict(
        defer_build=True,
        env_prefix=ENVIRONMENT_PREFIX,
        enable_decoding=False,  # lists come as `a,b`, not as JSON
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    _is_complete: ClassVar[bool] = True

    # --- broker
    amqp_url: Annotated[Secrets, AfterValidator(check_broker_urls)] = (
        _fixed_except_login(
            "amqp://guest:guest@127.0.0.1:5672/",
            "URL of RabbitMQ. Several, separated by commas, are tried in order. `amqps://` for TLS, "
            "with `?cafile=` and, for mutual TLS, `&certfile=&keyfile=`.",
        )
    )
    management_url: (
        Annotated[SecretStr, AfterValidator(check_management_url)] | None
    ) = _reloadable(
        None,
        "RabbitMQ's management API, such as `http://host:15672/`, with a login or with the "
        "login of `BRIDGE_AMQP_URL`. Optional: delivering messages needs AMQP only.",
    )
    namespace: Namespace = _fixed(
        "bridge",
        "First part of the names of all exchanges and queues; at most 110 bytes.",
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = _reloadable(
        4000,
        "Messages in flight (1 to 65535), over all shards together; each shard buffers at most "
        "64 MiB.",
    )
    shards: ShardCount = _fixed(
        1,
        "Inbound queues (1 to 64) that users are distributed over; one bridge consumes each. "
        "Used on an empty broker; later `bridge shards set` changes the number. More than one "
        "needs a plugin of RabbitMQ before 4.3 (docs/operations.md names it).",
    )
    broker_timeout: Duration = _fixed(
        "15s", "Timeout of one call to the broker, including a connect."
    )
    retry_delays: Annotated[Durations, AfterValidator(check_retry_delays)] = _fixed(
        "1s,10s,60s",
        "Delays before the retries of a message that failed with an unexpected error.",
    )

    schemas: str | None = _reloadable(
        None,
        "Folder with a JSON Schema (2020-12) for each event, `EVENT.json`. Data that it does not "
        "allow is refused by HTTP, or dead-lettered with reason `schema`.",
    )
    schemas_unknown: Literal["pass", "dead"] = _reloadable(
        "pass",
        "How to treat an event without a file in `BRIDGE_SCHEMAS`: deliver or dead-letter it.",
    )

    # --- requests from pages
    page_events: Annotated[Words, AfterValidator(check_events)] = _fixed(
        (),
        "Events that pages may send to workers (docs/requests.md). Empty: none. They need "
        "`BRIDGE_AUTH=jwt`, because workers rely on the user in their headers.",
    )
    request_timeout: Annotated[
        float, BeforeValidator(parse_duration_s), Field(ge=0.1, le=600)
    ] = _fixed(
        "10s",
        "Time in which a worker must reply to a request from a page; after it, the request is "
        "removed from its queue (100ms to 10m).",
    )
    max_requests_per_window: Count = _fixed(
        32, "Requests of one window that may wait for a reply."
    )

    # --- ports
    name: str = _fixed(
        "",
        "Name of this bridge if there are several, such as `bridge-1`. Session ids begin with it "
        "and a dot, so that a load balancer can route each poll to the bridge of its session.",
        pattern=r"^[A-Za-z0-9_-]{0,32}$",
    )
    host: Hosts = _fixed(
        "127.0.0.1",
        "Address of the public port, or several, separated by commas. `0.0.0.0` is every IPv4 "
        "address of the machine, `::` every IPv6 and IPv4 address. `unix:PATH` is a Unix socket "
        "for a proxy, with mode 0660. `fd:NAME` is a socket that systemd passes.",
    )
    port: Port = _fixed(
        8080, "The public port: `/socket.io/`, `/health/*`. 0 = any free port."
    )
    tls_cert: str | None = _fixed(
        None,
        "File in PEM with the certificate of the public port, followed by those of its issuers. "
        "With it, the TCP addresses of the public port serve `https` and `wss` only. SIGHUP reads "
        "both files again, for new connections.",
    )
    tls_key: str | None = _fixed(
        None,
        "File in PEM with the private key of `BRIDGE_TLS_CERT`, without a password.",
    )
    operator_host: Hosts = _fixed(
        "127.0.0.1", "Address of the operator port, or several, as for `BRIDGE_HOST`."
    )
    operator_port: Port = _fixed(
        8081,
        "The operator port: `/api/*`, `/console`, `/metrics`, `/health/*`. 0 = any free port.",
    )
    operator_token: _Key | None = _reloadable(
        None, "Key of the operator port. Without one, only `/health/*` answers there."
    )
    operator_allowed_hosts: Words = _fixed(
        (),
        "Host names that the operator port answers to on a loopback address, besides "
        "`localhost` and the address: the name under which a proxy on this machine serves it.",
    )
    api_key: _Key | None = _reloadable(
        None,
        "Key of `POST /api/publish`, `GET /api/presence`, `GET /api/users/USER/position` and of the "
        "legacy endpoint; the operator token is valid there, too.",
    )
    legacy_push: bool = _fixed(
        False,
        "Enables the legacy endpoint `GET /?name=USER&msg=TEXT` on the public port.",
    )
    trusted_proxies: Annotated[Words, AfterValidator(check_networks)] = _reloadable(
        (),
        "Addresses or networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted.",
    )
    dangerously_allow_weak_secrets: bool = _reloadable(
        False,
        "For tests: accepts an operator token, API key or JWT secret that can be guessed.",
    )

    # --- authentication
    auth: Literal["jwt", "open"] = _fixed(
        "jwt", "`jwt`: a token names the user. `open`: a page may `join` as any user."
    )
    dangerously_open_to_the_network: bool = _fixed(
        False,
        "Allows `auth=open` on an address that other machines can reach.",
    )
    jwt_secret: Secrets = _reloadable(
        (),
        "Secret for HS256, HS384, HS512. Two, separated by a comma, during a rotation.",
    )
    jwt_public_key: Annotated[str, AfterValidator(load_public_key_text)] | None = (
        _reloadable(
            None,
            "Public key in PEM for RS*, ES*, EdDSA, or the path of a file with it.",
        )
    )
    jwks_url: Annotated[str, AfterValidator(check_jwks_url)] | None = _fixed(
        None, "URL of the key set (https, or http on loopback)."
    )
    jwt_algorithms: Annotated[Words, AfterValidator(check_algorithms)] = _reloadable(
        (),
        "Accepted algorithms; a token cannot choose another one. Empty: they follow from the "
        "keys, HS256 for `BRIDGE_JWT_SECRET`, those of the kind of each key for "
        "`BRIDGE_JWKS_URL` and `BRIDGE_JWT_PUBLIC_KEY`.",
    )
    jwt_audience: Words = _reloadable(
        (), "If set, the `aud` of a token must contain one of these."
    )
    jwt_issuer: str | None = _reloadable(
        None, "If set, the `iss` of a token must be this."
    )
    jwt_leeway: Annotated[
        float, BeforeValidator(parse_duration_s), Field(ge=0, le=300)
    ] = _reloadable(
        "10s",
        "Tolerance for clock differences in the checks of `exp` and `nbf`. An open window stays "
        "open for this time after the `exp` of its token.",
    )
    jwt_cookie: str = _fixed(
        "bridge_token",
        "Name of the cookie that may contain the token.",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
    )
    allowed_origins: Annotated[Words, AfterValidator(check_origins)] = _reloadable(
        (),
        "Origins whose pages may connect, such as `https://example.org`, "
        "`https://*.example.org` (`*` is one label) or `capacitor://localhost`. "
        "`dangerously-null` is the origin `null`, which any site can send. "
        "Empty: only pages with the same host and port as bridge.",
    )
    dangerously_allow_any_origin: bool = _reloadable(
        False,
        "Allows pages of any origin to connect.",
    )

    # --- inbox
    inbox: Annotated[str, AfterValidator(check_inbox)] = _fixed_except_login(
        "sqlite:bridge-inbox.sqlite3",
        "The store. `sqlite:PATH` is a file on a local disk; a path without a leading `/` is "
        "relative to the working directory. `memory:` loses all messages when the bridge "
        "stops. `redis://[USER:PASSWORD@]HOST[:PORT][/DB]` is shared by many bridges; "
        "`rediss:` uses TLS, `redis+sentinel://HOST,…/SERVICE` and `redis+cluster://HOST,…` "
        "are several servers. With `sqlite:` and `memory:` only one bridge can consume a "
        "namespace. Options after a `?`: `replicas=N`, `ca=FILE`, `cert=FILE`, `key=FILE`, "
        "`sentinel_user=`, `sentinel_password=`.",
    )
    inbox_max_messages: Count = _reloadable(1000, "Messages kept for each user.")
    inbox_max_age: Duration = _reloadable("7d", "Age at which a message is deleted.")
    max_retained: Annotated[int, Field(ge=1, le=1000)] = _reloadable(
        100,
        "Keys of one user that are retained (1 to 1000); a message that would retain one more "
        "becomes a dead letter.",
    )
    dedupe_window: Duration = _reloadable(
        "10m",
        "Period in which a repeated `message_id` of the same user is not stored again.",
    )

    undelivered_after: Annotated[DurationsByName, AfterValidator(check_events)] = (
        _reloadable(
            {},
            "Time after which messages of an event count as undelivered, such as "
            "`invoice=45s,alarm=10s`. The header `x-bridge-undelivered-after` takes precedence.",
        )
    )
    events_max_waiting: Count = _fixed(
        100_000,
        "Events for workers, such as receipts, that wait in the inbox store while RabbitMQ "
        "takes none. At this number the oldest about presence are dropped; without those, "
        "messages with a receipt or a time after which they count as undelivered wait in RabbitMQ, "
        "and all that follow them.",
    )

    presence: bool = _fixed(
        False,
        "Publishes `user.online` and `user.offline` to `<namespace>.events`: who has windows on "
        "any bridge. Set it on all bridges.",
    )
    presence_debounce: Duration = _fixed(
        "15s",
        "How long a user must have no windows before `user.offline` is published.",
    )

    # --- limits
    max_message_bytes: Size = _reloadable(
        "256KiB", "Size limit of a body; a larger one becomes a dead letter."
    )
    slow_client_bytes: Size = _reloadable(
        "1MiB",
        "Bytes that are buffered for one window; above it, the window gets the rest from the "
        "inbox at its own pace.",
    )
    max_windows_per_user: Count = _reloadable(
        100, "Concurrent windows of one user, in each worker process."
    )
    max_windows_per_address: Count = _reloadable(
        1000,
        "Concurrent windows from one address, in each worker process. Twice as many other "
        "connections are accepted from it, at most half of the file descriptors; "
        "trusted proxies have no limit.",
    )
    ipv6_prefix: Annotated[int, Field(ge=32, le=128)] = _reloadable(
        64,
        "Length of the IPv6 prefix that counts as one address (32 to 128): a host can use every "
        "address of its network.",
    )
    max_event_bytes: Size = _fixed("16KiB", "Size limit of a frame from a window.")
    max_events_per_second: Count = _reloadable(
        50, "Average rate of events from a window; bursts of twice as many are allowed."
    )
    connect_timeout: Duration = _fixed(
        "10s",
        "Time in which a new connection must send its first request, and a new session must "
        "authenticate.",
    )
    ping_interval: WholeSeconds = _fixed(
        "25s", "Interval of pings to a window, in whole seconds."
    )
    ping_timeout: WholeSeconds = _fixed(
        "20s",
        "Time in which a window must answer a ping, in whole seconds. A window that reads "
        "nothing for this time during its replay is closed with code `slow`.",
    )

    # --- running
    workers: Annotated[int, Field(ge=1, le=128)] = _fixed(
        1,
        "Worker processes (1 to 128), about one for each core. More than one needs a shared "
        "inbox, `redis:`.",
    )
    drain_timeout: Duration = _reloadable("30s", "Time limit of a drain at shutdown.")
    drain_windows_per_second: Count = _reloadable(
        200,
        "Windows that are asked to reconnect per second of a drain; more if they would "
        "take longer than half of `BRIDGE_DRAIN_TIMEOUT`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _reloadable(
        "info", "Lowest level that is logged."
    )
    log_format: Literal["auto", "pretty", "json"] = _fixed(
        "auto", "`auto`: pretty on a terminal, JSON elsewhere."
    )

    @property
    def token_algorithms(self) -> tuple[str, ...]:
        """
        The accepted algorithms: those that are set, else those that suit the keys.

        A public key verifies algorithms of its own kind only (`auth.keys`), so all kinds
        can be listed for it.
        """
        if self.jwt_algorithms:
            return self.jwt_algorithms
        symmetric = ("HS256",) if self.jwt_secret else ()
        has_public_keys = bool(self.jwt_public_key or self.jwks_url)
        return symmetric + (PUBLIC_KEY_ALGORITHMS if has_public_keys else ())

    @property
    def accepts_tokens_for_others(self) -> bool:
        """Whether any token of an issuer with public keys is accepted, of any `aud` and `iss`."""
        has_public_keys = bool(self.jwt_public_key or self.jwks_url)
        is_restricted = bool(self.jwt_audience or self.jwt_issuer)
        return self.auth == "jwt" and has_public_keys and not is_restricted

    @model_validator(mode="wrap")
    @classmethod
    def _check_together(
        cls, values: Any, check_fields: ModelWrapValidatorHandler[Self]
    ) -> Self:
        """Check each field, then the fields together, and report all problems at once."""
        problems: list[str] = []
        try:
            settings = check_fields(values)
        except ValidationError as exc:
            known = [environment_name(name) for name in cls.model_fields]
            errors = exc.errors(include_input=False, include_url=False)
            problems = [problem_text(error, known=known) for error in errors]
            wrong = {str(error["loc"][0]) for error in errors}
            # Replace invalid fields by their defaults, so that the others can be checked
            # together. Problems that mention a replaced field would be wrong.
            settings = check_fields({n: v for n, v in values.items() if n not in wrong})
            together = contradictions(settings) if cls._is_complete else []
            named = [environment_name(name) for name in wrong]
            problems += [t for t in together if not any(name in t for name in named)]
        else:
            problems = contradictions(settings) if cls._is_complete else []
        if problems:
            raise ValueError("\n".join(problems))
        return settings


class PartialSettings(Settings):
    """Settings that are valid alone, for a command that does not need all of them."""

    _is_complete: ClassVar[bool] = False


def contradictions(settings: Settings) -> list[str]:
    """Return the problems of settings that are valid alone but not together."""
    return [
        *_auth_problems(settings),
        *_key_problems(settings),
        *_open_mode_problems(settings),
        *_inbox_problems(settings),
        *_port_problems(settings),
        *_tls_problems(settings),
    ]


def _key_problems(settings: Settings) -> Iterator[str]:
    keys = (
        ("BRIDGE_OPERATOR_TOKEN", settings.operator_token),
        ("BRIDGE_API_KEY", settings.api_key),
    )
    for name, key in keys:
        weakness = secret_weakness(key.get_secret_value()) if key else None
        if weakness and not settings.dangerously_allow_weak_secrets:
            yield f"{name}: {weakness}; make one with `openssl rand -hex 16`"


def _tls_problems(settings: Settings) -> Iterator[str]:
    if settings.tls_cert is None and settings.tls_key is not None:
        yield "BRIDGE_TLS_KEY: needs BRIDGE_TLS_CERT, the file with the certificate"
    if settings.tls_cert is None:
        return
    if settings.tls_key is None:
        yield "BRIDGE_TLS_CERT: needs BRIDGE_TLS_KEY, the file with the private key"
    if settings.workers > 1:
        # Workers pass connections on by their descriptors, without the state of TLS.
        yield (
            "BRIDGE_TLS_CERT: several workers cannot serve TLS: use a proxy that terminates it, "
            "or BRIDGE_WORKERS=1"
        )


def _port_problems(settings: Settings) -> Iterator[str]:
    public, operator = set(settings.host), set(settings.operator_host)
    for path in sorted(public & operator - set(tcp_hosts(settings.host))):
        yield f"BRIDGE_OPERATOR_HOST: {path} is also in BRIDGE_HOST; choose another one"
    if settings.workers > 1 and len(tcp_hosts(settings.host)) < len(settings.host):
        yield (
            "BRIDGE_HOST: several workers cannot share a Unix socket or a socket of systemd: "
            "use TCP addresses, or BRIDGE_WORKERS=1"
        )
    public, operator = (
        set(tcp_hosts(settings.host)),
        set(tcp_hosts(settings.operator_host)),
    )
    has_both = bool(public and operator)
    is_same_host = has_both and (
        public & operator or any(is_wildcard(host) for host in public | operator)
    )
    if is_same_host and settings.port == settings.operator_port != 0:
        yield (
            f"BRIDGE_OPERATOR_PORT: {settings.operator_port} is also BRIDGE_PORT; choose "
            "another port"
        )


def _inbox_problems(settings: Settings) -> Iterator[str]:
    max_age_s = settings.inbox_max_age
    for event, after_s in settings.undelivered_after.items():
        if after_s > max_age_s:
            yield (
                f"BRIDGE_UNDELIVERED_AFTER: {event}={render_duration(after_s)} is longer than "
                f"BRIDGE_INBOX_MAX_AGE ({render_duration(max_age_s)}), after which a message is "
                "deleted: use a shorter time, or keep messages longer"
            )
    # Live messages that do not fit are read from the inbox later, one at a time: each window
    # of the user would leave the fast path for a single message of the allowed size.
    if settings.slow_client_bytes < 2 * settings.max_message_bytes:
        yield (
            "BRIDGE_SLOW_CLIENT_BYTES: must be at least twice BRIDGE_MAX_MESSAGE_BYTES, "
            "or one large message makes every window of its user read from the inbox"
        )
    # Without a folder, every message would become a dead letter.
    if settings.schemas is None and settings.schemas_unknown == "dead":
        yield "BRIDGE_SCHEMAS_UNKNOWN: dead needs BRIDGE_SCHEMAS, the known events"
    kind, colon, _ = settings.inbox.partition(":")
    if settings.workers > 1 and kind in {"sqlite", "memory"}:
        yield (
            f"BRIDGE_WORKERS: {settings.workers} workers need an inbox that they share, and "
            f"{kind}{colon} belongs to one process: set BRIDGE_INBOX=redis://HOST:PORT/, or "
            "BRIDGE_WORKERS=1"
        )


def _auth_problems(settings: Settings) -> Iterator[str]:
    if settings.auth == "open":
        return
    has_public_keys = bool(settings.jwt_public_key or settings.jwks_url)
    if not settings.jwt_secret and not has_public_keys:
        yield (
            "BRIDGE_JWT_SECRET: no key is set that can verify tokens. For tokens of an "
            "existing issuer, set BRIDGE_JWKS_URL or BRIDGE_JWT_PUBLIC_KEY; for tokens of "
            "your own, set a secret, made with `openssl rand -base64 48`"
        )
        return
    symmetric = [name for name in settings.token_algorithms if name.startswith("HS")]
    asymmetric = [name for name in settings.token_algorithms if name not in symmetric]
    omit = (
        "or omit BRIDGE_JWT_ALGORITHMS, to accept the algorithms of the key that is set"
    )
    if symmetric and not settings.jwt_secret:
        yield (
            f"BRIDGE_JWT_ALGORITHMS: {symmetric[0]} needs BRIDGE_JWT_SECRET, which is not "
            f"set; set it, {omit}"
        )
    if asymmetric and not has_public_keys:
        yield (
            f"BRIDGE_JWT_ALGORITHMS: {asymmetric[0]} needs BRIDGE_JWKS_URL or "
            f"BRIDGE_JWT_PUBLIC_KEY, and neither is set; set one, {omit}"
        )
    if settings.jwt_public_key and settings.jwks_url:
        yield (
            "BRIDGE_JWT_PUBLIC_KEY: cannot be used together with BRIDGE_JWKS_URL; omit the "
            "key to use the keys of the URL, or omit the URL to use this key only"
        )
    for number, secret in enumerate(settings.jwt_secret, start=1):
        length = len(secret.get_secret_value().encode())
        short = [name for name in symmetric if length < _SECRET_MIN_BYTES[name]]
        if short:
            strictest = max(short, key=_SECRET_MIN_BYTES.__getitem__)
            yield (
                f"BRIDGE_JWT_SECRET: secret number {number} has {length} bytes, "
                f"{strictest} needs {_SECRET_MIN_BYTES[strictest]} (RFC 7518 section 3.2)"
            )
        elif settings.dangerously_allow_weak_secrets:
            continue
        elif weakness := secret_weakness(secret.get_secret_value()):
            yield (
                f"BRIDGE_JWT_SECRET: secret number {number} {weakness}; make one with "
                "`openssl rand -base64 48`"
            )


def _open_mode_problems(settings: Settings) -> Iterator[str]:
    # The address of a socket of systemd is not known here.
    is_exposed = settings.auth == "open" and any(
        not is_loopback(host) for host in settings.host if unix_path(host) is None
    )
    if settings.auth == "open" and settings.page_events:
        yield (
            "BRIDGE_PAGE_EVENTS: needs BRIDGE_AUTH=jwt: in open mode a page names its user, and "
            "workers would rely on it"
        )
    if is_exposed and not settings.dangerously_open_to_the_network:
        yield (
            f"BRIDGE_AUTH: open on {', '.join(settings.host)} lets everyone read all messages; "
            "bind to 127.0.0.1, use jwt, or, if you want that, set "
            "BRIDGE_DANGEROUSLY_OPEN_TO_THE_NETWORK=true"
        )
