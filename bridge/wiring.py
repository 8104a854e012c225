"""What each room is told of the settings: its own part, in its own words."""

import socket
from collections.abc import Callable
from time import time
from typing import Final

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.consume.intake import Intake
from bridge.amqp.consume.session import Batch
from bridge.amqp.management import MANAGEMENT_WITHIN_S, Management
from bridge.amqp.shards.layout import ShardPlan
from bridge.auth.jwt import TokenRules
from bridge.core.broker_names import BrokerNames
from bridge.core.client_address import parse_networks
from bridge.core.event_schemas import EventSchemas
from bridge.core.journal import Journal
from bridge.core.origins import OriginRules
from bridge.core.redis_address import is_redis, parse_redis
from bridge.core.worker_slot import Workplace
from bridge.errors import ConfigError
from bridge.fencing import Fencing
from bridge.http.authentication import Handler, Keys, guarded, on_loopback_only
from bridge.http.console.sign_in import SignIn
from bridge.http.public import LegacyDoor
from bridge.http.publishing import EventCheck, MessagePublisher
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.migration.model import Target
from bridge.inbox.redis.fleet import RedisFleet
from bridge.inbox.redis.migration_target import redis_target
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.store import SqliteInbox
from bridge.metrics import Metrics
from bridge.schema_folder import load_schemas
from bridge.settings.model import Settings
from bridge.sockets.engineio.server import Admission, Bounds
from bridge.sockets.server import ServerOptions

# Well below what a commit with its fsync takes on most disks, so that it costs a message
# little time, and at thousands a second saves every second or third commit.
_STORE_PACE_S: Final = 0.002
# With a shared store it is also how often each of the other bridges is woken up, and the
# more of them there are the less each one is woken for.
_SHARED_PACE_S: Final = 0.004


def broker_address(settings: Settings) -> BrokerAddress:
    """Return where the broker is."""
    return BrokerAddress(
        urls=tuple(url.get_secret_value() for url in settings.amqp_url),
        timeout_s=settings.broker_timeout,
    )


def shard_plan(settings: Settings) -> ShardPlan:
    """Return what the broker shall hold for any number of shards."""
    return ShardPlan(
        BrokerNames(settings.namespace),
        settings.retry_delays,
        shards=settings.shards,
        timeout_s=settings.broker_timeout,
    )


def management_of(
    settings: Settings, *, timeout_s: float = MANAGEMENT_WITHIN_S
) -> Management | None:
    """Return the management API of the broker, if the settings name one."""
    if settings.management_url is None:
        return None
    return Management(
        settings.management_url.get_secret_value(),
        amqp_url=settings.amqp_url[0].get_secret_value(),
        timeout_s=timeout_s,
    )


def inbox_of(settings: Settings) -> MemoryInbox | RedisInbox | SqliteInbox:
    """Return the store that the settings name, not opened yet."""
    if is_redis(settings.inbox):
        return RedisInbox(
            parse_redis(settings.inbox),
            retention(settings),
            namespace=settings.namespace,
        )
    kind, _, path = settings.inbox.partition(":")
    if kind == "sqlite":
        return SqliteInbox(path, retention(settings))
    return MemoryInbox(retention(settings))


def fencing_of(
    inbox: MemoryInbox | RedisInbox | SqliteInbox, intake: Intake, metrics: Metrics
) -> Fencing[Batch] | None:
    """Return what keeps bridges out that lost their queue, if the store is shared."""
    if isinstance(inbox, RedisInbox):
        return Fencing(intake, inbox, metrics=metrics)
    return None


def fleet_of(settings: Settings) -> RedisFleet | None:
    """Return the way to the other bridges, if the store is one that they share."""
    if not is_redis(settings.inbox):
        return None
    return RedisFleet(parse_redis(settings.inbox), namespace=settings.namespace)


def journal_of(settings: Settings, place: Workplace | None) -> Journal:
    """Return an empty journal that begins now, and says whose it is."""
    bridge = settings.name or socket.gethostname()
    if place is not None:
        bridge = f"{bridge} worker {place.index}"
    return Journal(began_s=time(), bridge=bridge)


def has_own_inbox(settings: Settings) -> bool:
    """Say whether the store is one that no other bridge can share."""
    return not is_redis(settings.inbox)


def carry_target_of(settings: Settings) -> Target:
    """
    Return the shared store that the settings name, to be carried into.

    Raises:
        ConfigError: If they name one that inboxes cannot be carried into.

    """
    if not is_redis(settings.inbox):
        problem = f"{settings.inbox} is no store of a fleet, expected redis://..."
        raise ConfigError((problem,))
    return redis_target(
        parse_redis(settings.inbox),
        namespace=settings.namespace,
        retention=retention(settings),
    )


def pace_s(settings: Settings) -> float:
    """
    Return the least time between two batches: what a store does for each is worth a wait.

    A commit to a disk; with Redis, a wake-up of each bridge that has a window for it.
    """
    if settings.inbox.startswith("memory:"):
        return 0.0
    if settings.inbox.startswith("sqlite:"):
        return _STORE_PACE_S
    return _SHARED_PACE_S


def retention(settings: Settings) -> Retention:
    """Return how much an inbox keeps."""
    return Retention(
        max_messages=settings.inbox_max_messages,
        max_age_s=settings.inbox_max_age,
        dedupe_s=settings.dedupe_window,
    )


def schemas_of(settings: Settings) -> EventSchemas | None:
    """
    Read what the data of events may be. Blocks; `ConfigError` as `load_schemas`.

    At each reload too: a changed file is no changed setting.
    """
    return load_schemas(settings.schemas, unknown=settings.schemas_unknown)


def token_rules(settings: Settings) -> TokenRules:
    """Return what a token must be."""
    return TokenRules(
        algorithms=settings.jwt_algorithms,
        secrets=tuple(secret.get_secret_value() for secret in settings.jwt_secret),
        public_key=settings.jwt_public_key,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
        leeway_s=settings.jwt_leeway,
    )


def server_options(settings: Settings) -> ServerOptions:
    """Return what windows may cost, and whose pages may connect."""
    return ServerOptions(
        bounds=Bounds(
            outbound_bytes=settings.slow_client_bytes,
            events_per_second=settings.max_events_per_second,
            windows_per_user=settings.max_windows_per_user,
            windows_per_address=settings.max_windows_per_address,
            connect_s=settings.connect_timeout,
        ),
        admission=Admission(
            origins=OriginRules(
                allowed=frozenset(settings.allowed_origins),
                allows_any=settings.dangerously_allow_any_origin,
                loopback_only=settings.auth == "open"
                and not settings.dangerously_open_to_the_network,
            ),
            trusted_proxies=parse_networks(settings.trusted_proxies),
        ),
        ping_interval_s=settings.ping_interval,
        ping_timeout_s=settings.ping_timeout,
        max_event_bytes=settings.max_event_bytes,
        cookie=settings.jwt_cookie,
        leeway_s=settings.jwt_leeway,
        name=settings.name,
    )


def revealed(value: object) -> str | None:
    """Return a secret setting in plain; ``None`` if it is not set."""
    reveal = getattr(value, "get_secret_value", None)
    return str(reveal()) if reveal else None


def sign_in_of(settings: Callable[[], Settings]) -> SignIn:
    """Return the console's sign-in, which has no key yet; `settings` tells those of now."""
    return SignIn(
        Keys((), setting="BRIDGE_OPERATOR_TOKEN"),
        lambda: parse_networks(settings().trusted_proxies),
    )


def legacy_door(
    settings: Settings, publisher: MessagePublisher, keys: Keys, check: EventCheck
) -> Handler | None:
    """Return the article's door with what stands before it; ``None`` if it is off."""
    if not settings.legacy_push:
        return None
    push = LegacyDoor(publisher, check).push
    if settings.auth != "open":
        return guarded(keys, push)
    if settings.dangerously_open_to_the_network:
        return push
    return on_loopback_only(push)
