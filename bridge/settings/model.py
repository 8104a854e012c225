"""Every setting, declared once: name, type, default, unit, help, and what it may be."""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from yarl import URL

from bridge.settings.checks import (
    ENVIRONMENT_PREFIX,
    amqp_url_problem,
    environment_name,
    inbox_problem,
    jwks_url_problem,
    key_problem,
    origin_problem,
    problem_text,
)
from bridge.settings.contradictions import contradictions
from bridge.settings.values import (
    Count,
    Duration,
    Durations,
    Namespace,
    Port,
    Secrets,
    ShardCount,
    Size,
    Words,
    parse_duration_s,
)

JWT_ALGORITHMS: Final = (
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512",
    "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip


def _reloadable(default: Any, help_: str) -> Any:
    return Field(default, description=help_, json_schema_extra={"reload": True})


def _fixed(default: Any, help_: str, **bounds: Any) -> Any:
    return Field(
        default, description=help_, json_schema_extra={"reload": False}, **bounds
    )


class Settings(BaseSettings):
    """
    The settings of one bridge, checked and frozen.

    Construct it with `load_settings`, which gathers the sources and reports problems.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        enable_decoding=False,  # lists come as `a,b`, not as JSON
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    # --- broker
    amqp_url: Secrets = _fixed(
        "amqp://guest:guest@127.0.0.1:5672/",
        "RabbitMQ. Several, comma-separated, are tried in turn. `amqps://` for TLS, with "
        "`?cafile=` and for mutual TLS `&certfile=&keyfile=`.",
    )
    management_url: SecretStr | None = _fixed(
        None,
        "RabbitMQ's management API, as `http://host:15672/`, with a login in it or that of "
        "`BRIDGE_AMQP_URL`. Optional: AMQP alone does for carrying messages.",
    )
    namespace: Namespace = _fixed(
        "bridge",
        "First part of the names of all exchanges and queues; at most 110 bytes.",
    )
    prefetch: Count = _reloadable(
        4000,
        "Messages in flight (1 to 65535), over all shards together; at most 64 MiB wait for each.",
    )
    shards: ShardCount = _fixed(
        1,
        "Inbound queues (1 to 64) that users are spread over; each is consumed by one bridge "
        "at a time. Counts on an empty broker; later `bridge shards set` changes it. More than "
        "one needs RabbitMQ's plugin `rabbitmq_sharding` (docs/operations.md; none from 4.3 on).",
    )
    broker_timeout: Duration = _fixed(
        "15s", "The longest that one call to the broker may take, connecting included."
    )
    retry_delays: Durations = _fixed(
        "1s,10s,60s",
        "Waits before each new attempt at a message that failed in an unknown way.",
    )

    schemas: str | None = _reloadable(
        None,
        "Folder with a JSON Schema (2020-12) for each event, `EVENT.json`: data that it does "
        "not allow is refused, or set aside with reason `schema`.",
    )
    schemas_unknown: Literal["pass", "dead"] = _reloadable(
        "pass", "What becomes of an event without a file in `BRIDGE_SCHEMAS`."
    )

    # --- doors
    name: str = _fixed(
        "",
        "Name of this bridge among several, as `bridge-1`: session ids begin with it and a dot, "
        "so that a load balancer brings each poll to the bridge that has its session.",
        pattern=r"^[A-Za-z0-9_-]{0,32}$",
    )
    host: str = _fixed("127.0.0.1", "Address of the public port.")
    port: Port = _fixed(
        8080, "The public port: `/socket.io/`, `/health/*`. 0 = any free one."
    )
    operator_host: str = _fixed("127.0.0.1", "Address of the operator port.")
    operator_port: Port = _fixed(
        8081,
        "The operator port: `/api/*`, `/console`, `/metrics`, `/health/*`. 0 = any free one.",
    )
    operator_token: SecretStr | None = _reloadable(
        None, "Opens the operator port. Without one, only `/health/*` answers there."
    )
    api_key: SecretStr | None = _reloadable(
        None,
        "Opens `POST /api/publish` and the legacy door, besides the operator token.",
    )
    legacy_push: bool = _fixed(
        False,
        "Opens the article's `GET /?name=USER&msg=TEXT` on the public port.",
    )
    trusted_proxies: Words = _reloadable(
        (),
        "Addresses or networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.",
    )

    # --- who may connect
    auth: Literal["jwt", "open"] = _fixed(
        "jwt", "`jwt`: a token names the user. `open`: anybody may `join` as anybody."
    )
    dangerously_open_to_the_network: bool = _fixed(
        False,
        "Allows `auth=open` on an address that others can reach.",
    )
    jwt_secret: Secrets = _reloadable(
        (),
        "Secret for HS256, HS384, HS512. Two, comma-separated, while one is being rotated.",
    )
    jwt_public_key: str | None = _reloadable(
        None, "Public key in PEM, or the path of a file with one, for RS*, ES*, EdDSA."
    )
    jwks_url: str | None = _fixed(
        None, "Where the key set is fetched (https, or http on loopback)."
    )
    jwt_algorithms: Words = _reloadable(
        "HS256", "Algorithms that are accepted, whatever a token says of itself."
    )
    jwt_audience: Words = _reloadable(
        (), "If set, a token's `aud` must hold one of these."
    )
    jwt_issuer: str | None = _reloadable(None, "If set, a token's `iss` must be this.")
    jwt_leeway: Annotated[
        float, BeforeValidator(parse_duration_s), Field(ge=0, le=300)
    ] = _reloadable(
        "10s", "How far clocks may differ when `exp` and `nbf` are checked."
    )
    jwt_cookie: str = _fixed(
        "bridge_token",
        "Cookie that may hold the token.",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
    )
    allowed_origins: Words = _reloadable(
        (),
        "Origins whose pages may connect, as `https://example.org`. "
        "Empty: only pages from the host that the bridge is reached by.",
    )
    dangerously_allow_any_origin: bool = _reloadable(
        False,
        "Lets pages of any origin connect.",
    )

    # --- inbox
    inbox: str = _fixed(
        "sqlite:bridge-inbox.sqlite3",
        "The store: `sqlite:PATH` is a file on a local disk (without a leading `/`, from the "
        "folder that the bridge is started in), `memory:` forgets when the bridge stops, "
        "`redis://[USER:PASSWORD@]HOST[:PORT][/DB]` is shared by many bridges; `rediss:` is "
        "with TLS, `redis+sentinel://HOST,…/SERVICE` and `redis+cluster://HOST,…` are several. With `sqlite:` and `memory:` one bridge alone takes the messages of a namespace. "
        "Behind a `?`: `replicas=N`, `ca=FILE`, `cert=FILE`, `key=FILE`, `sentinel_user=`, `sentinel_password=`.",
    )
    inbox_max_messages: Count = _reloadable(1000, "Messages kept for each user.")
    inbox_max_age: Duration = _reloadable("7d", "How long a message is kept.")
    dedupe_window: Duration = _reloadable(
        "10m", "Within it, the same `message_id` for the same user is stored once."
    )

    # --- bounds
    max_message_bytes: Size = _reloadable(
        "256KiB", "Largest body; larger ones become dead letters."
    )
    slow_client_bytes: Size = _reloadable(
        "1MiB",
        "Bytes that may wait for one window; over it, the rest is read from the inbox as fast as the window reads.",
    )
    max_windows_per_user: Count = _reloadable(100, "Windows of one user at a time.")
    max_windows_per_address: Count = _reloadable(
        1000, "Windows from one address at a time."
    )
    max_event_bytes: Size = _fixed("16KiB", "Largest frame that a window may send.")
    max_events_per_second: Count = _reloadable(
        50, "Events that a window may send, averaged; bursts of twice that pass."
    )
    connect_timeout: Duration = _fixed(
        "10s", "Within it, a connection must have said who it is."
    )
    ping_interval: Annotated[int, BeforeValidator(parse_duration_s), Field(ge=1)] = (
        _fixed("25s", "Pause between two pings to a window, in whole seconds.")
    )
    ping_timeout: Annotated[int, BeforeValidator(parse_duration_s), Field(ge=1)] = (
        _fixed("20s", "How long a window may take to answer a ping, in whole seconds.")
    )

    # --- running
    workers: Annotated[int, Field(ge=1, le=128)] = _fixed(
        1,
        "Processes that share the work, one for each core (1 to 128). More than one needs an "
        "inbox that they share, `redis:`.",
    )
    drain_timeout: Duration = _reloadable("30s", "The longest that leaving may take.")
    drain_windows_per_second: Count = _reloadable(
        200,
        "Windows told in a second to connect elsewhere, when leaving; more if the half of "
        "`BRIDGE_DRAIN_TIMEOUT` would not do for all.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _reloadable(
        "info", "Least level that is logged."
    )
    log_format: Literal["auto", "pretty", "json"] = _fixed(
        "auto", "`auto`: pretty on a terminal, JSON elsewhere."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then the TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("amqp_url")
    @classmethod
    def _check_amqp_urls(cls, urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not urls:
            message = "must name at least one broker, as amqp://user:password@host/"
            raise ValueError(message)
        for number, secret in enumerate(urls, start=1):
            problem = amqp_url_problem(secret.get_secret_value())
            if problem:
                # The URL holds a password: say which one it is, not what it is.
                message = f"URL number {number} {problem}"
                raise ValueError(message)
        return urls

    @field_validator("management_url")
    @classmethod
    def _check_management_url(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            url = URL(secret.get_secret_value())
            if url.scheme not in {"http", "https"} or not url.host:
                # It may hold a password: not quoted.
                message = "must look like http://user:password@host:15672/"
                raise ValueError(message)
        return secret

    @field_validator("operator_token", "api_key")
    @classmethod
    def _check_keys(cls, secret: SecretStr | None) -> SecretStr | None:
        problem = None if secret is None else key_problem(secret.get_secret_value())
        if problem is not None:
            raise ValueError(problem)
        return secret

    @field_validator("prefetch")
    @classmethod
    def _check_prefetch(cls, count: int) -> int:
        if count > 65535:
            message = "must be at most 65535, the most that AMQP can say"
            raise ValueError(message)
        return count

    @field_validator("jwt_algorithms")
    @classmethod
    def _check_algorithms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in JWT_ALGORITHMS]
        if unknown or not names:
            message = f"{', '.join(unknown) or 'nothing'} given, known are {', '.join(JWT_ALGORITHMS)}"
            raise ValueError(message)
        return names

    @field_validator("jwt_public_key")
    @classmethod
    def _load_public_key(cls, value: str | None) -> str | None:
        if value is None or "-----BEGIN" in value:
            return value
        try:
            return Path(value).read_text(encoding="ascii")
        except (OSError, ValueError) as exc:
            message = f"is neither a PEM text nor a file that can be read: {type(exc).__name__}"
            raise ValueError(message) from exc

    @field_validator("jwks_url")
    @classmethod
    def _check_jwks_url(cls, value: str | None) -> str | None:
        problem = jwks_url_problem(value) if value is not None else None
        if problem is not None:
            raise ValueError(problem)
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        problems = [
            problem for origin in origins if (problem := origin_problem(origin))
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return tuple(origin.rstrip("/") for origin in origins)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network, strict=False)  # its error says what is wrong
        return networks

    @field_validator("inbox")
    @classmethod
    def _check_inbox(cls, value: str) -> str:
        problem = inbox_problem(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    @field_validator("retry_delays")
    @classmethod
    def _check_retry_delays(cls, delays_s: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(delays_s) <= 10 or any(
            not 0.001 <= d <= 86400 for d in delays_s
        ):
            message = "expected 1 to 10 delays between 1ms and 1d"
            raise ValueError(message)
        return delays_s

    @model_validator(mode="wrap")
    @classmethod
    def _check_together(
        cls, values: Any, check_fields: ModelWrapValidatorHandler[Self]
    ) -> Self:
        """Check each field, then what they mean together, and tell it all at once."""
        problems: list[str] = []
        try:
            settings = check_fields(values)
        except ValidationError as exc:
            known = [environment_name(name) for name in cls.model_fields]
            errors = exc.errors(include_input=False, include_url=False)
            problems = [problem_text(error, known=known) for error in errors]
            wrong = {str(error["loc"][0]) for error in errors}
            # With defaults in place of what is wrong, the rest can be looked at too.
            settings = check_fields({n: v for n, v in values.items() if n not in wrong})
            together = contradictions(settings)
            named = tuple(environment_name(name) for name in wrong)
            problems += [text for text in together if not text.startswith(named)]
        else:
            problems = contradictions(settings)
        if problems:
            raise ValueError("\n".join(problems))
        return settings
