"""
What a site of so many users would take, from what one message, one window, one user cost.

Pure arithmetic: costs come from `fleet.py` (docs/scale.json), what people do is assumed
and said so, and what comes out is how many of each part there must be, and which of its
limits made it so many.
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
        delivery_us: Of all bridges, for a message that is stored and reaches one window,
            wherever it is, when messages come one by one.
        busy_delivery_us: The same when there is always another one waiting.
        append_us: Of the bridge that consumes, for a message that only has to be stored.
        connect_us: For a window to be let in and to have its replay.
        ping_us: For a ping and its pong.
        window_bytes: Of an idle window, in the bridge.
        bridge_bytes: Of a bridge without windows.
        broker_us: Of RabbitMQ, one node, from publish to ack.
        broker_per_s: Messages a second through one shard, by measurement.
        store_us: Of Redis, for a message stored and told to who follows.
        connect_store_us: Of Redis, for a window that connects.
        user_bytes: Of Redis, for a user that it knows.
        message_bytes: Of Redis, for a message that it keeps.

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
        """Return what a delivery costs once it is stored, the way to its bridge included."""
        return self.delivery_us - self.append_us


# Where each cost stands in scale.json: work, set-up, figure, and what it is multiplied by.
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
    Take the medians over the rounds of scale.json.

    Raises:
        KeyError: If something was not measured.

    """
    values: dict[str, float] = {}
    for name, (work, set_up, figure, factor) in SOURCES.items():
        found = [each[work][set_up][figure] for each in measured["rounds"]]
        values[name] = median(found) * factor
    return Costs(**values)


@dataclass(frozen=True, slots=True)
class Site:
    """
    What people do. All of it is assumed.

    Attributes:
        online: Users with a window.
        windows_each: Windows of one of them.
        messages_hourly: Messages for one of them in an hour of the day's peak.
        peak: How much more there are in the worst minute than in that hour.
        connects_hourly: How often a window connects anew in an hour.
        known_each: Users that the store knows, for each that is online.
        kept_each: Messages that are kept for each user that the store knows.
        body_bytes: Of a message; costs were measured with 200.

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
        """How many are open."""
        return self.online * self.windows_each

    @property
    def messages_per_s(self) -> float:
        """In the worst minute."""
        return self.online * self.messages_hourly * self.peak / 3600

    @property
    def deliveries_per_s(self) -> float:
        """A message at a window."""
        return self.messages_per_s * self.windows_each

    @property
    def connects_per_s(self) -> float:
        """On a usual day."""
        return self.windows * self.connects_hourly / 3600

    @property
    def known(self) -> float:
        """Users that the store knows."""
        return self.online * self.known_each


@dataclass(frozen=True, slots=True)
class Rules:
    """
    How full anything may be. Chosen.

    Attributes:
        load: Of a core, so that one part may fail and a minute may be worse.
        ping_s: Between two pings to a window.
        windows_most: In one bridge: what comes back at once when it dies. 10,000 were
            measured.
        store_bytes_most: In one Redis: what is loaded or copied at a fail-over.
        copies: Of each Redis shard, and nodes that hold each message in RabbitMQ.
        broker_copy_cost: What RabbitMQ costs with three nodes, against one.
        balancer_windows: Connections through one load balancer.
        balancer_gbit: Through one load balancer.
        socket_bytes: Of the kernel, for a window in a bridge.
        stores_most: Redis shards in one fleet: the hash tags that its users are spread over.
        broker_cores_most: Of one RabbitMQ cluster: three nodes with 16 each.

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
    How many of one part there must be.

    Attributes:
        count: How many.
        limit: What made it so many.
        needs: For each limit, how many it alone would ask for; not rounded.

    """

    count: int
    limit: str
    needs: Mapping[str, float]

    @classmethod
    def of(cls, needs: Mapping[str, float], *, least: int) -> "Part":
        """Take the largest of `needs`, and no fewer than `least`."""
        limit = max(needs, key=lambda name: needs[name])
        count = ceil(needs[limit])
        if count <= least:
            return cls(least, _SPARE if least > 1 else _ENOUGH, needs)
        return cls(count, limit, needs)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a site takes."""

    site: Site
    bridges: Part
    bridge_cores: float  # in use in the worst minute, all together
    bridge_bytes: float
    stores: Part  # shards, without their copies
    store_cores: float
    store_bytes: float
    shards: Part  # of the way in
    broker_cores: float
    balancers: Part
    out_gbit: float
    inside_gbit: float


# TCP, IP and Ethernet for a frame, and what socket.io and the position add to a body.
_WIRE_BYTES: Final = 78 + 60
_PING_BYTES: Final = 2 * (78 + 8)


def plan(site: Site, costs: Costs, rules: Rules) -> Fleet:
    """Say what `site` takes, if everything costs what it cost."""
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
    return Fleet(
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
        # Published, copied to two nodes, delivered, stored, copied, told to a bridge, sent
        # to the load balancer.
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
    """Say how many users online one of each part bears, by each of its limits."""
    many = Site(10**9)  # so many that nothing else counts
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
