"""
The composition root: builds every object of a bridge from its settings.

`Components` holds the objects of one bridge; `app` starts and stops them. Each function
translates the settings for one component. Commands that need only one component use them,
too.
"""

import socket
from collections.abc import Callable
from time import time

from pydantic import SecretStr

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.consume.control import ControlConsumer
from bridge.amqp.consume.intake import Intake
from bridge.amqp.dead_letters.operations import DeadLetterQueue
from bridge.amqp.management import MANAGEMENT_WITHIN_S, ManagementApi
from bridge.amqp.publish.messages import MessagePublisher
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.queues import QueueInspector
from bridge.amqp.requests import RequestClient
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.supervision import OutageLog
from bridge.auth.jwt import TokenRules, TokenVerifier
from bridge.auth.key_set import KeySet
from bridge.auth.limited_verifier import LimitedVerifier
from bridge.clock import SteadyClock
from bridge.core.broker_names import BrokerNames
from bridge.core.client_address import parse_networks
from bridge.core.event_schemas import EventSchemas
from bridge.core.journal import Journal
from bridge.core.listen_hosts import tcp_hosts
from bridge.core.message import MessageLimits
from bridge.core.origins import OriginRules
from bridge.core.redis_address import is_redis, parse_redis
from bridge.core.worker_slot import WorkerSlot
from bridge.errors import ConfigError
from bridge.event_publisher import EventPublisher
from bridge.fencing import Fencing
from bridge.gauges import GaugeSampler
from bridge.http.api.dead_letters import add_dead_letter_routes
from bridge.http.api.endpoint import Api
from bridge.http.api.jobs import add_job_routes
from bridge.http.api.overview import OverviewEndpoint
from bridge.http.api.queues import add_queue_routes
from bridge.http.api.revocations import add_revocation_routes
from bridge.http.api.trace import add_trace_routes
from bridge.http.api.users import add_user_routes
from bridge.http.authentication import (
    Handler,
    KeyAttempts,
    Keys,
    guarded,
    on_own_pages_only,
)
from bridge.http.console.sign_in import SignIn
from bridge.http.fleet import FleetView
from bridge.http.jobs import JobBoard
from bridge.http.listeners import OPERATOR_LINE_MAX_BYTES
from bridge.http.operator import operator_app
from bridge.http.public import public_app
from bridge.http.publish import CurrentSchemas, LegacyPushEndpoint, PublishEndpoint
from bridge.inbox.contract import PresenceStore, Retention
from bridge.inbox.maintenance import InboxMaintenance
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.migration.model import MigrationTarget
from bridge.inbox.redis.fleet import RedisFleet
from bridge.inbox.redis.migration_target import RedisTarget
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.store import SqliteInbox
from bridge.logging import dropped_log_lines
from bridge.metrics import Metrics, SupervisorMetrics
from bridge.outbox import Outbox
from bridge.pipeline import Pipeline
from bridge.presence import PresenceReporter
from bridge.readiness import BridgeReadiness
from bridge.schema_folder import load_schemas
from bridge.server_certificate import (
    PortCertificate,
    ServerCertificate,
    load_server_certificate,
)
from bridge.settings.checks import is_loopback
from bridge.settings.model import Settings
from bridge.sockets.engineio.connection_limits import ConnectionLimits
from bridge.sockets.engineio.handshake import HandshakePolicy
from bridge.sockets.engineio.listener import Listener
from bridge.sockets.engineio.session import SessionLimits
from bridge.sockets.options import SocketOptions
from bridge.sockets.page_requests import PageRequests
from bridge.sockets.rooms import Rooms
from bridge.sockets.server import SocketIOServer
from bridge.tracing import open_tracing
from bridge.trusted_proxies import TrustedProxies


class Components:
    """
    The objects of one bridge, connected to each other and not started.

    Attributes:
        tracing: ``None`` if no endpoint for spans is configured.
        fleet: Asks the other bridges; ``None`` unless the store is shared.
        presence: ``None`` if it is turned off.
        verifier: ``None`` in open mode.
        certificate: That of the public port; ``None`` without TLS.

    """

    def __init__(self, settings: Settings, slot: WorkerSlot | None = None) -> None:
        """
        Build a bridge. Reads schemas and the certificate, and opens nothing else.

        Args:
            settings: Checked settings.
            slot: The slot of this process if it is one of several workers.

        Raises:
            ConfigError: If a key, a schema or the certificate of the settings is invalid.

        """
        self.metrics = metrics = Metrics()
        self.tracing = open_tracing()
        self.fleet = fleet_of(settings)
        self.verifier = verifier_of(settings)
        journal = journal_of(settings, slot)
        schemas = schemas_of(settings)

        clock = SteadyClock()
        metrics.clock_jumps.set_function(lambda: clock.jump_count)
        self.inbox = inbox = inbox_of(settings, clock)
        self.inbox_maintenance = InboxMaintenance(inbox)
        names = BrokerNames(settings.namespace)
        self._broker = address = broker_address(settings)
        plan = shard_plan(settings)
        outages = OutageLog()
        self.page_requests = PageRequests(
            RequestClient(
                address,
                names,
                timeout_s=settings.request_timeout,
                metrics=metrics,
                outages=outages,
            ),
            events=settings.page_events,
            schemas=schemas,
            max_reply_bytes=settings.max_message_bytes,
            max_per_window=settings.max_requests_per_window,
            max_per_user=settings.max_requests_per_window
            * settings.max_windows_per_user,
            metrics=metrics,
            tracing=self.tracing,
        )
        self.proxies = proxies_of(settings, metrics)
        self.certificate = (
            PortCertificate(loaded) if (loaded := certificate_of(settings)) else None
        )
        self.presence = presence_of(settings, inbox, rooms=lambda: self.sockets.rooms)
        self.sockets = SocketIOServer(
            socket_options(settings, self.proxies),
            inbox=inbox,
            verifier=LimitedVerifier(self.verifier) if self.verifier else None,
            metrics=metrics,
            clock=clock,
            journal=journal,
            tracing=self.tracing,
            slot=slot,
            page_requests=self.page_requests if settings.page_events else None,
            on_presence=self.presence.note if self.presence else None,
        )

        fleet_view = FleetView(
            self.sockets, journal, name=settings.name, fleet=self.fleet
        )

        self.publisher = Publisher(
            address, names, metrics=metrics, declares=plan, outages=outages
        )
        self.messages = MessagePublisher(self.publisher, names)
        self.intake = Intake(
            address,
            plan,
            prefetch_count=settings.prefetch,
            metrics=metrics,
            has_own_inbox=not is_redis(settings.inbox),
            control=ControlConsumer(
                names,
                kick=lambda user, reason: fleet_view.kick(user, reason=reason),
                revoke=inbox.revoke,
                metrics=metrics,
                timeout_s=address.timeout_s,
            ),
            outages=outages,
        )
        self.events = EventPublisher(
            address,
            names,
            inbox,
            max_waiting=settings.events_max_waiting,
            metrics=metrics,
            journal=journal,
            outages=outages,
        )
        self.outbox = Outbox(self.intake, self.publisher, metrics=metrics)
        self.pipeline = Pipeline(
            intake=self.intake,
            inbox=inbox,
            publisher=self.publisher,
            outbox=self.outbox,
            limits=message_limits(settings),
            retry_delays_s=settings.retry_delays,
            metrics=metrics,
            schemas=schemas,
            clock=clock,
            journal=journal,
            tracing=self.tracing,
            # Only bridges that share a store can append after they lost a queue.
            fencing=Fencing(inbox, metrics=metrics)
            if isinstance(inbox, RedisInbox)
            else None,
            events_problem=lambda: self.events.full,
        )
        self.readiness = readiness = BridgeReadiness(
            intake=self.intake,
            pipeline=self.pipeline,
            outbox=self.outbox,
            inbox=inbox,
            outages=outages,
            requests=self.page_requests.client if settings.page_events else None,
            events=self.events,
        )
        metrics.log_lines_dropped.set_function(dropped_log_lines)
        metrics.certificate_end.set_function(self._certificate_end_s)
        metrics.ready.set_function(lambda: not readiness.unready_reasons())

        self.current_schemas = CurrentSchemas(schemas)
        self.key_attempts = attempts = key_attempts_of(
            self.proxies,
            metrics,
            supervisor_socket=slot.operator_socket if slot is not None else None,
        )
        self.publish_keys = publish_keys_of(settings, attempts)
        self.public_app = public_app(
            unready_reasons=readiness.unready_reasons,
            warnings=readiness.warnings,
            route_sockets=self.sockets.engine.route,
            legacy=legacy_endpoint(
                settings,
                LegacyPushEndpoint(self.messages, self.current_schemas),
                keys=self.publish_keys,
                sockets=self.sockets,
            ),
        )

        self.dead_letters = dead_letters = DeadLetterQueue(
            address, names, publisher=self.publisher, journal=journal
        )
        self._queues = queues = QueueInspector(
            address,
            names,
            intake=self.intake,
            dead_letters=dead_letters,
            management=management_of(settings),
        )
        self.gauges = GaugeSampler(
            metrics,
            queues=queues,
            inbox=inbox,
            store=settings.inbox.partition(":")[0],
        )
        self.jobs = jobs = JobBoard()

        def add_api(api: Api) -> None:
            OverviewEndpoint(
                namespace=settings.namespace,
                port=settings.port,
                readiness=readiness,
                intake=self.intake,
                inbox=inbox,
                sockets=self.sockets,
                metrics=metrics,
            ).add_routes(api)
            add_queue_routes(api, queues, self.events, names)
            add_dead_letter_routes(api, dead_letters, jobs)
            add_job_routes(api, jobs)
            add_routes_of_users(api, inbox, fleet_view)
            add_trace_routes(
                api, inboxes=inbox.admin, dead_letters=dead_letters, fleet=fleet_view
            )

        self.publish_endpoint = PublishEndpoint(
            self.messages,
            metrics,
            limits=message_limits(settings),
            current=self.current_schemas,
            journal=journal,
        )
        self.sign_in = sign_in_of(settings, attempts, self.proxies)
        self.operator_listener = operator_listener(settings, self.proxies, metrics)
        self.operator_app = operator_app(
            unready_reasons=readiness.operator_reasons,
            warnings=readiness.warnings,
            publish=self.publish_endpoint.publish,
            metrics=metrics,
            sign_in=self.sign_in,
            publish_keys=self.publish_keys,
            # In a worker this is a Unix socket; the supervisor checks the host.
            known_hosts=known_hosts_of(settings) if slot is None else None,
            add_api=add_api,
        )

    def replace_logins(self, settings: Settings) -> None:
        """Use the logins of `settings` for new connections; open ones stay as they are."""
        self._broker.replace_urls(broker_address(settings).urls)
        self._queues.replace_management(management_of(settings))
        for part in (self.inbox, self.fleet):
            if isinstance(part, RedisInbox | RedisFleet):
                part.replace_login(parse_redis(settings.inbox))

    def _certificate_end_s(self) -> float:
        return self.certificate.current.end_s if self.certificate else 0.0


def add_routes_of_users(
    api: Api, inbox: MemoryInbox | RedisInbox | SqliteInbox, fleet: FleetView
) -> None:
    """Serve users, their windows, inboxes and revocations."""
    add_user_routes(api, inbox.admin, fleet, inbox)
    add_revocation_routes(api, inbox)


# --- broker


def broker_address(settings: Settings) -> BrokerAddress:
    """Return the addresses of the broker and the timeout of its calls."""
    return BrokerAddress(
        urls=tuple(url.get_secret_value() for url in settings.amqp_url),
        timeout_s=settings.broker_timeout,
    )


def shard_plan(settings: Settings) -> ShardPlan:
    """Return the exchanges and queues of any number of shards."""
    return ShardPlan(
        BrokerNames(settings.namespace),
        settings.retry_delays,
        shards=settings.shards,
        timeout_s=settings.broker_timeout,
    )


def management_of(
    settings: Settings, *, timeout_s: float = MANAGEMENT_WITHIN_S
) -> ManagementApi | None:
    """Return the client of the management API; ``None`` if it is not configured."""
    if settings.management_url is None:
        return None
    return ManagementApi(
        settings.management_url.get_secret_value(),
        amqp_url=settings.amqp_url[0].get_secret_value(),
        timeout_s=timeout_s,
    )


# --- inbox


def inbox_of(
    settings: Settings, clock: SteadyClock | None = None
) -> MemoryInbox | RedisInbox | SqliteInbox:
    """Return the store that the settings name; it is not open yet."""
    if is_redis(settings.inbox):
        return RedisInbox(
            parse_redis(settings.inbox),
            retention(settings),
            namespace=settings.namespace,
            clock=clock,
        )
    kind, _, path = settings.inbox.partition(":")
    if kind == "sqlite":
        return SqliteInbox(path, retention(settings), clock=clock)
    return MemoryInbox(retention(settings), clock=clock)


def presence_of(
    settings: Settings, store: PresenceStore, *, rooms: Callable[[], Rooms]
) -> PresenceReporter | None:
    """Return the reporter of who has windows in `rooms`; ``None`` if it is turned off."""
    if not settings.presence:
        return None
    return PresenceReporter(
        store,
        windows_of=lambda user: len(rooms().windows_of(user)),
        users=lambda: rooms().users,
        debounce_s=settings.presence_debounce,
    )


def fleet_of(settings: Settings) -> RedisFleet | None:
    """Return the channel to the other bridges; ``None`` unless the store is shared."""
    if not is_redis(settings.inbox):
        return None
    return RedisFleet(parse_redis(settings.inbox), namespace=settings.namespace)


def journal_of(settings: Settings, slot: WorkerSlot | None) -> Journal:
    """Return an empty journal that begins now and names this process."""
    bridge = settings.name or socket.gethostname()
    if slot is not None:
        bridge = f"{bridge} worker {slot.index}"
    return Journal(began_s=time(), bridge=bridge)


def migration_target_of(settings: Settings) -> MigrationTarget:
    """
    Return the shared store that inboxes are migrated to.

    Raises:
        ConfigError: If the settings name a store of another kind.

    """
    if not is_redis(settings.inbox):
        problem = f"{settings.inbox} cannot be shared by several bridges, expected redis://..."
        raise ConfigError((problem,))
    return RedisTarget(parse_redis(settings.inbox), namespace=settings.namespace)


def retention(settings: Settings) -> Retention:
    """Return how many messages an inbox keeps, and how long."""
    return Retention(
        max_messages=settings.inbox_max_messages,
        max_age_s=settings.inbox_max_age,
        dedupe_s=settings.dedupe_window,
        max_retained=settings.max_retained,
    )


# --- messages and tokens


def message_limits(settings: Settings) -> MessageLimits:
    """Return the limits that a message must meet."""
    return MessageLimits(
        settings.max_message_bytes, settings.inbox_max_age, settings.undelivered_after
    )


def schemas_of(settings: Settings) -> EventSchemas | None:
    """
    Read the schemas of events; ``None`` if no folder is configured. Blocks on the disk.

    Raises:
        ConfigError: If the folder or one of its files is invalid.

    """
    return load_schemas(settings.schemas, unknown=settings.schemas_unknown)


def verifier_of(settings: Settings) -> TokenVerifier | None:
    """Return the verifier of tokens; ``None`` in open mode. May raise `ConfigError`."""
    if settings.auth == "open":
        return None
    key_set = KeySet(settings.jwks_url) if settings.jwks_url else None
    return TokenVerifier(token_rules(settings), key_set)


def token_rules(settings: Settings) -> TokenRules:
    """Return the conditions that a token must meet."""
    return TokenRules(
        algorithms=settings.token_algorithms,
        secrets=tuple(secret.get_secret_value() for secret in settings.jwt_secret),
        public_key=settings.jwt_public_key,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
        leeway_s=settings.jwt_leeway,
    )


# --- HTTP and sockets


def socket_options(settings: Settings, proxies: TrustedProxies) -> SocketOptions:
    """Return the limits of windows and the rules of admission."""
    return SocketOptions(
        limits=SessionLimits(
            outbound_bytes=settings.slow_client_bytes,
            events_per_second=settings.max_events_per_second,
            sessions_per_address=settings.max_windows_per_address,
            connect_s=settings.connect_timeout,
            ping_interval_s=settings.ping_interval,
            ping_timeout_s=settings.ping_timeout,
            max_packet_bytes=settings.max_event_bytes,
        ),
        policy=HandshakePolicy(
            origins=OriginRules(
                allowed=frozenset(settings.allowed_origins),
                allows_any=settings.dangerously_allow_any_origin,
                loopback_only=settings.auth == "open"
                and not settings.dangerously_open_to_the_network,
                own_scheme="https" if settings.tls_cert else None,
            ),
            proxies=proxies,
            ipv6_prefix=settings.ipv6_prefix,
        ),
        max_windows_per_user=settings.max_windows_per_user,
        cookie=settings.jwt_cookie,
        leeway_s=settings.jwt_leeway,
        name=settings.name,
    )


def certificate_of(settings: Settings) -> ServerCertificate | None:
    """
    Read the certificate of the public port; ``None`` without TLS. Blocks on the disk.

    Raises:
        ConfigError: If the files cannot be used.

    """
    return load_server_certificate(settings.tls_cert, settings.tls_key)


def operator_listener(
    settings: Settings, proxies: TrustedProxies, metrics: Metrics | SupervisorMetrics
) -> Listener:
    """Return the listener of the operator port."""
    options = socket_options(settings, proxies)
    return Listener(
        ConnectionLimits(
            options.limits, options.policy, metrics=metrics, is_for_operators=True
        ),
        line_max_bytes=OPERATOR_LINE_MAX_BYTES,
    )


def proxies_of(
    settings: Settings, metrics: Metrics | SupervisorMetrics
) -> TrustedProxies:
    """Return the proxies whose `X-Forwarded-*` headers are trusted."""
    return TrustedProxies(
        parse_networks(settings.trusted_proxies),
        count_unreadable=metrics.forwarded_unreadable.inc,
    )


def key_attempts_of(
    proxies: TrustedProxies,
    metrics: Metrics | SupervisorMetrics,
    *,
    supervisor_socket: str | None = None,
) -> KeyAttempts:
    """Return the count of wrong keys, which all keys of a process share."""
    return KeyAttempts(
        proxies,
        count=lambda why: metrics.keys_refused.labels(outcome=why).inc(),
        supervisor_socket=supervisor_socket,
    )


def sign_in_of(
    settings: Settings, attempts: KeyAttempts, proxies: TrustedProxies
) -> SignIn:
    """Return the sign-in of the console."""
    key = operator_key_of(settings)
    keys = Keys((key,), setting="BRIDGE_OPERATOR_TOKEN", attempts=attempts)
    return SignIn(keys, proxies)


def publish_keys_of(settings: Settings, attempts: KeyAttempts) -> Keys:
    """Return the keys that may publish over HTTP."""
    given = publish_key_texts_of(settings)
    return Keys(
        given, setting="BRIDGE_API_KEY", attempts=attempts, resets_attempts=False
    )


def operator_key_of(settings: Settings) -> str | None:
    """Return the operator token in plain text; ``None`` if it is not set."""
    return _plain(settings.operator_token)


def publish_key_texts_of(settings: Settings) -> tuple[str | None, str | None]:
    """Return the keys for publishing in plain text; those that are not set are ``None``."""
    return _plain(settings.api_key), _plain(settings.operator_token)


def known_hosts_of(settings: Settings) -> tuple[str, ...] | None:
    """Return the host names of the operator port; ``None`` if it answers to any name."""
    is_local = all(map(is_loopback, tcp_hosts(settings.operator_host)))
    return settings.operator_allowed_hosts if is_local else None


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def legacy_endpoint(
    settings: Settings,
    endpoint: LegacyPushEndpoint,
    *,
    keys: Keys,
    sockets: SocketIOServer,
) -> Handler | None:
    """Return the guarded handler of `GET /?name=&msg=`; ``None`` if it is disabled."""
    if not settings.legacy_push:
        return None
    if settings.auth != "open":
        return guarded(keys, endpoint.push)
    # Without a key, every page that a browser of this network shows could push.
    return on_own_pages_only(endpoint.push, allows_origin=sockets.engine.allows_origin)
