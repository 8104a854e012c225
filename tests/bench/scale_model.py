"""
A model of the parts that a site needs, from the costs of a message, a window and a user.

Pure arithmetic. Costs are measured by `fleet.py` (docs/scale.json), the behavior of users
is assumed. The result is the number of each part, and the limit that determines it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any, Final

from bridge.inbox.redis.encoding import TAG_COUNT

_US: Final = 1e6
_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class Costs:
    """
    Unit costs, measured: microseconds of processor time, and bytes.

    Attributes:
        delivery_us: All bridges: a message that is stored and reaches one window on any
            bridge, at a moderate rate.
        busy_delivery_us: The same with a backlog.
        append_us: The consuming bridge: a message that is only stored.
        connect_us: A window that connects and gets its replay.
        ping_us: A ping and its pong.
        window_bytes: Memory of the bridge for an idle window.
        bridge_bytes: Memory of a bridge without windows.
        broker_us: RabbitMQ with one node: a message from publish to ack.
        broker_per_s: Messages per second through one shard.
        store_us: Redis: a message that is stored and sent to the live feed.
        connect_store_us: Redis: a window that connects.
        user_bytes: Memory of Redis for a user.
        message_bytes: Memory of Redis for a stored message.

    """

    delivery_us: float
    busy_delivery_us: float
    append_us: float
    connect_us: float
    ping_us: float
    window_bytes: float
    bridge_bytes: float
    broker_us: float
    broker_per_s: float
    store_us: float
    connect_store_us: float
    user_bytes: float
    message_bytes: float

    @property
    def write_us(self) -> float:
        """Return the cost of a delivery after the append, including the live feed."""
        return self.delivery_us - self.append_us


# The source of each cost in scale.json: workload, setup, figure, and a factor.
SOURCES: Final[Mapping[str, tuple[str, str, str, float]]] = {
    "delivery_us": ("spread", "relaxed", "steady_us", 1),
    "busy_delivery_us": ("spread", "pair", "saturated_us", 1),
    "append_us": ("append", "pair", "us", 1),
    "connect_us": ("idle", "one", "connect_us", 1),
    "ping_us": ("idle", "one", "ping_us", 1),
    "window_bytes": ("idle", "one", "window_kib", 1024),
    "bridge_bytes": ("idle", "one", "bridge_mib", 2**20),
    "broker_us": ("spread", "relaxed", "steady_broker_us", 1),
    "broker_per_s": ("flood", "pair", "per_s", 1),
    "store_us": ("spread", "relaxed", "steady_store_us", 1),
    "connect_store_us": ("idle", "one", "connect_store_us", 1),
    "user_bytes": ("memory", "one", "user_bytes", 1),
    "message_bytes": ("memory", "one", "message_bytes", 1),
}


def read_costs(measured: Mapping[str, Any]) -> Costs:
    """
    Return the medians over the rounds of scale.json.

    Raises:
        KeyError: If a figure was not measured.

    """
    values: dict[str, float] = {}
    for name, (work, setup, figure, factor) in SOURCES.items():
        found = [each[work][setup][figure] for each in measured["rounds"]]
        values[name] = median(found) * factor
    return Costs(**values)


@dataclass(frozen=True, slots=True)
class Site:
    """
    The assumed behavior of users.

    Attributes:
        online: Users with a window.
        windows_each: Windows per user.
        messages_hourly: Messages per online user in the peak hour of the day.
        peak: The rate in the worst minute, relative to that hour.
        connects_hourly: How often a window reconnects in an hour.
        known_each: Users in the store per online user.
        kept_each: Stored messages per user in the store.
        body_bytes: The size of a message; costs were measured with 200 bytes.

    """

    online: int
    windows_each: float = 1.3
    messages_hourly: float = 12.0
    peak: float = 3.0
    connects_hourly: float = 2.0
    known_each: float = 10.0
    kept_each: float = 20.0
    body_bytes: int = 200

    @property
    def windows(self) -> float:
        """The number of open windows."""
        return self.online * self.windows_each

    @property
    def messages_per_s(self) -> float:
        """The rate of messages in the worst minute."""
        return self.online * self.messages_hourly * self.peak / 3600

    @property
    def deliveries_per_s(self) -> float:
        """The rate of deliveries to windows in the worst minute."""
        return self.messages_per_s * self.windows_each

    @property
    def connects_per_s(self) -> float:
        """The rate of connections on a usual day."""
        return self.windows * self.connects_hourly / 3600

    @property
    def known(self) -> float:
        """The number of users in the store."""
        return self.online * self.known_each


@dataclass(frozen=True, slots=True)
class Rules:
    """
    The chosen limits of the parts.

    Attributes:
        load: The planned load of a core; the rest is for failures and worse minutes.
        ping_s: Seconds between two pings to a window.
        windows_most: Windows per bridge; all of them reconnect at once when it dies.
            10,000 were measured.
        store_bytes_most: Memory of one Redis, which is loaded or copied in a failover.
        copies: Copies of each Redis shard, and of each message in RabbitMQ.
        broker_copy_cost: The cost of RabbitMQ with three nodes, relative to one.
        balancer_windows: Connections per load balancer.
        balancer_gbit: Bandwidth per load balancer.
        socket_bytes: Kernel memory per window of a bridge.
        stores_most: Redis shards in one fleet: the number of hash tags.
        broker_cores_most: Cores of one RabbitMQ cluster: three nodes with 16 each.

    """

    load: float = 0.5
    ping_s: float = 25.0
    windows_most: float = 50_000
    store_bytes_most: float = 16 * _GIB
    copies: int = 2
    broker_copy_cost: float = 2.5
    balancer_windows: float = 500_000
    balancer_gbit: float = 10.0
    socket_bytes: float = 8 * 1024
    stores_most: int = TAG_COUNT
    broker_cores_most: float = 48


_SPARE: Final = "to have a spare one"
_ENOUGH: Final = "one is enough"


@dataclass(frozen=True, slots=True)
class Part:
    """
    The required number of one part.

    Attributes:
        count: The number.
        limit: The limit that determines it.
        needs: The number that each limit alone would require, not rounded.

    """

    count: int
    limit: str
    needs: Mapping[str, float]

    @classmethod
    def of(cls, needs: Mapping[str, float], *, least: int) -> "Part":
        """Return the part for the largest of `needs`, with at least `least`."""
        limit = max(needs, key=lambda name: needs[name])
        count = ceil(needs[limit])
        if count <= least:
            return cls(least, _SPARE if least > 1 else _ENOUGH, needs)
        return cls(count, limit, needs)


@dataclass(frozen=True, slots=True)
class PlannedFleet:
    """The parts that a site needs."""

    site: Site
    bridges: Part
    bridge_cores: float  # total usage in the worst minute
    bridge_bytes: float
    stores: Part  # shards, without their copies
    store_cores: float
    store_bytes: float
    shards: Part  # inbound queues
    broker_cores: float
    balancers: Part
    out_gbit: float
    inside_gbit: float


# Headers of TCP, IP and Ethernet, and the bytes that Socket.IO and the position add.
_WIRE_BYTES: Final = 78 + 60
_PING_BYTES: Final = 2 * (78 + 8)


def plan(site: Site, costs: Costs, rules: Rules) -> PlannedFleet:
    """Return the parts that `site` needs with the measured costs."""
    bridge_us = _bridge_us(site, costs, rules)
    store_us = (
        site.messages_per_s * costs.store_us
        + site.connects_per_s * costs.connect_store_us
    )
    store_bytes = site.known * (costs.user_bytes + site.kept_each * costs.message_bytes)
    bridges = Part.of(
        {
            "processor": bridge_us / _US / rules.load,
            "windows": site.windows / rules.windows_most,
        },
        least=2,
    )
    per_window = costs.window_bytes + rules.socket_bytes
    out_gbit = _gbit(
        site.deliveries_per_s * (site.body_bytes + _WIRE_BYTES)
        + site.windows / rules.ping_s * _PING_BYTES
    )
    return PlannedFleet(
        site,
        bridges=bridges,
        bridge_cores=bridge_us / _US,
        bridge_bytes=bridges.count * costs.bridge_bytes + site.windows * per_window,
        stores=Part.of(
            {
                "processor": store_us / _US / rules.load,
                "memory": store_bytes / rules.store_bytes_most,
            },
            least=1,
        ),
        store_cores=store_us / _US,
        store_bytes=store_bytes,
        shards=_shards(site, costs, rules),
        broker_cores=site.messages_per_s
        * costs.broker_us
        * rules.broker_copy_cost
        / _US,
        balancers=Part.of(
            {
                "connections": site.windows / rules.balancer_windows,
                "network": out_gbit / rules.balancer_gbit / rules.load,
            },
            least=2,
        ),
        out_gbit=out_gbit,
        # Published, copied to two nodes, delivered, stored, replicated, sent to a bridge by
        # the live feed, sent to the load balancer.
        inside_gbit=out_gbit
        + _gbit(site.messages_per_s * 7 * (site.body_bytes + _WIRE_BYTES)),
    )


def _bridge_us(site: Site, costs: Costs, rules: Rules) -> float:
    """Return what all bridges use in a second of the worst minute."""
    # A user's second window is at another bridge as a rule, which has all of its work.
    return (
        site.messages_per_s * costs.append_us
        + site.deliveries_per_s * costs.write_us
        + site.windows / rules.ping_s * costs.ping_us
        + site.connects_per_s * costs.connect_us
    )


def _shards(site: Site, costs: Costs, rules: Rules) -> Part:
    """A shard is bounded by its queue, and by the one bridge that consumes it."""
    return Part.of(
        {
            "its queue": site.messages_per_s / (costs.broker_per_s * rules.load),
            "its consumer": site.messages_per_s * costs.append_us / (_US * rules.load),
        },
        least=1,
    )


def _gbit(bytes_per_s: float) -> float:
    return bytes_per_s * 8 / 1e9


def users_of_one(costs: Costs, rules: Rules) -> Mapping[str, int]:
    """Return how many online users one of each part supports, by each of its limits."""
    many = Site(10**9)  # large enough to make minimums irrelevant
    fleet = plan(many, costs, rules)
    parts = {
        "a bridge": fleet.bridges,
        "a Redis": fleet.stores,
        "a shard of RabbitMQ": fleet.shards,
        "a load balancer": fleet.balancers,
    }
    limits = {
        f"{name}: {limit}": int(many.online / need)
        for name, part in parts.items()
        for limit, need in part.needs.items()
    }
    cores = rules.broker_cores_most * rules.load
    return limits | {
        f"a fleet: {rules.stores_most} Redis shards, its hash tags": int(
            many.online * rules.stores_most / max(fleet.stores.needs.values())
        ),
        f"a RabbitMQ cluster: {rules.broker_cores_most:g} cores": int(
            many.online * cores / fleet.broker_cores
        ),
    }
