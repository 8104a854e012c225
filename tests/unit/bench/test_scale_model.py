"""The model behind docs/scale.md."""

from dataclasses import replace

import pytest

from tests.bench.scale_model import (
    SOURCES,
    Costs,
    Part,
    Rules,
    Site,
    plan,
    read_costs,
    users_of_one,
)

# Round figures, so that the expected results are easy to verify.
COSTS = Costs(
    delivery_us=100,
    busy_delivery_us=30,
    append_us=20,
    connect_us=1000,
    ping_us=10,
    window_bytes=1000,
    bridge_bytes=1_000_000,
    broker_us=50,
    broker_per_s=10_000,
    store_us=40,
    connect_store_us=100,
    user_bytes=500,
    message_bytes=300,
)
# 1,000 messages a second, 2,000 deliveries, 40 connects.
SITE = Site(
    online=72_000,
    windows_each=2.0,
    messages_hourly=50.0,
    peak=1.0,
    connects_hourly=1.0,
    known_each=10.0,
    kept_each=10.0,
)
RULES = Rules(load=0.5, ping_s=20, windows_most=50_000, socket_bytes=1000)


def test_the_load_of_bridges_is_the_sum_of_their_work() -> None:
    """Bridges store and deliver messages, answer pings and accept connections."""
    fleet = plan(SITE, COSTS, RULES)

    # Of 1,000 messages, 2,000 deliveries, 7,200 pings and 40 connects in a second.
    assert fleet.bridge_cores == pytest.approx(0.020 + 0.160 + 0.072 + 0.040)
    assert fleet.bridges.needs["processor"] == pytest.approx(0.584)
    assert fleet.bridges.needs["windows"] == pytest.approx(2.88)
    assert (fleet.bridges.count, fleet.bridges.limit) == (3, "windows")
    assert fleet.bridge_bytes == pytest.approx(3 * 1e6 + 144_000 * 2000)


def test_a_store_is_bounded_by_its_processor_or_by_its_memory() -> None:
    """The larger need determines the number of shards and its reason."""
    fleet = plan(SITE, COSTS, RULES)
    small = plan(SITE, COSTS, replace(RULES, store_bytes_most=1e9))

    assert fleet.store_cores == pytest.approx(0.040 + 0.004)
    assert fleet.store_bytes == 720_000 * (500 + 10 * 300)
    assert fleet.stores.count == 1
    assert (small.stores.count, small.stores.limit) == (3, "memory")


def test_a_shard_is_bounded_by_its_queue_and_by_its_consumer() -> None:
    """The tighter bound determines the number of shards."""
    many = replace(SITE, online=SITE.online * 20)  # 20,000 a second

    by_queue = plan(many, COSTS, RULES).shards
    by_consumer = plan(many, replace(COSTS, append_us=200), RULES).shards

    assert (by_queue.count, by_queue.limit) == (4, "its queue")
    assert (by_consumer.count, by_consumer.limit) == (8, "its consumer")


def test_twice_the_users_need_twice_of_each_part() -> None:
    """The unit costs do not depend on the size of a fleet; a separate bench measures that."""
    one = plan(replace(SITE, online=10**7), COSTS, RULES)
    two = plan(replace(SITE, online=2 * 10**7), COSTS, RULES)

    for part in ("bridges", "stores", "shards", "balancers"):
        few, many = getattr(one, part), getattr(two, part)
        assert abs(many.count - 2 * few.count) <= 1, part
    assert two.out_gbit == pytest.approx(2 * one.out_gbit)
    assert two.inside_gbit == pytest.approx(2 * one.inside_gbit)


def test_a_fleet_always_has_a_spare_bridge() -> None:
    """With a single bridge, a failure would stop the service."""
    assert Part.of({"processor": 0.1}, least=2) == Part(
        2, "to have a spare one", {"processor": 0.1}
    )


def test_the_users_that_one_part_supports_need_exactly_one() -> None:
    """The table of limits inverts the model."""
    limits = users_of_one(COSTS, RULES)

    for name, users in limits.items():
        if name.startswith(("a fleet", "a RabbitMQ cluster")):
            continue
        part = {
            "a bridge": "bridges",
            "a Redis": "stores",
            "a shard of RabbitMQ": "shards",
            "a load balancer": "balancers",
        }[name.partition(": ")[0]]
        fleet = plan(Site(users), COSTS, RULES)
        need = getattr(fleet, part).needs[name.partition(": ")[2]]
        assert need == pytest.approx(1, rel=1e-3)


def test_a_fleet_is_limited_by_hash_tags_and_broker_cores() -> None:
    """A larger site needs several fleets, each for a part of the users."""
    limits = users_of_one(COSTS, RULES)

    by_tags = plan(
        Site(limits["a fleet: 256 Redis shards, its hash tags"]), COSTS, RULES
    )
    by_cores = plan(Site(limits["a RabbitMQ cluster: 48 cores"]), COSTS, RULES)

    assert max(by_tags.stores.needs.values()) == pytest.approx(256)
    assert by_cores.broker_cores == pytest.approx(24)


def test_costs_are_medians_of_the_measurements() -> None:
    """One round on a busy machine must not distort the result."""
    rounds = [
        {
            work: {setup: {figure: value for _, _, figure, _ in SOURCES.values()}}
            for work, setup, _, _ in SOURCES.values()
        }
        for value in (1.0, 3.0, 100.0)
    ]
    for each in rounds:
        for work, setup, figure, _ in SOURCES.values():
            each[work].setdefault(setup, {})[figure] = next(
                iter(next(iter(each[work].values())).values())
            )

    costs = read_costs({"rounds": rounds})

    assert costs.delivery_us == 3.0
    assert costs.window_bytes == 3.0 * 1024
