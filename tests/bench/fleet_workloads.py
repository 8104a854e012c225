"""
The workloads of a fleet, measured in microseconds and bytes.

Each workload gets a newly started fleet. Messages have 200 bytes and are confirmed; `us` is
the processor time of all bridges per delivery, until all delivered marks are written.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Final

from tests.bench.fleet_setup import FleetSetup, RunningFleet
from tests.bench.workloads import Figures, users

# Its message is published last. When it arrives, all others are stored, because the queue
# keeps the order.
_LAST: Final = "the-last-one"
_IDLE_WINDOWS: Final = 2000
_IDLE_S: Final = 6.0
_PING_S: Final = 2
_STORE_USERS: Final = 5000
_STORE_MESSAGES: Final = 9
_REST_S: Final = 1.5
_TIMES: Final = 3


@dataclass(frozen=True, slots=True)
class FleetWorkload:
    """A workload and its setups."""

    name: str
    setups: tuple[FleetSetup, ...]
    do: Callable[[RunningFleet], Awaitable[Figures]]


async def spread(fleet: RunningFleet) -> Figures:
    """Measure windows of 200 users on all bridges: a backlog, then a steady stream."""
    scale, stage = fleet.stage.scale, fleet.stage
    some = users(scale.windows)
    await fleet.open(some)
    # Each process must be warm, so more bridges need a longer warm-up.
    await stage.saturate(some, scale.warm_up * len(fleet.servers.members))
    before = fleet.used()
    full = [await stage.saturate(some, scale.backlog) for _ in range(_TIMES)]
    used = fleet.used().since(before)
    figures = {
        "saturated_us": median(each["us"] for each in full),
        "saturated_broker_us": used.broker / scale.backlog / _TIMES,
        "saturated_store_us": used.store / scale.backlog / _TIMES,
    }
    before = fleet.used()
    steady = await stage.stream(some, scale.rate * fleet.setup.traffic)
    used = fleet.used().since(before)
    number = sum(used.bridges) / steady["us"]
    return figures | {
        "steady_us": steady["us"],
        "steady_p50_ms": steady["p50_ms"],
        "steady_p99_ms": steady["p99_ms"],
        "steady_broker_us": used.broker / number,
        "steady_store_us": used.store / number,
    }


async def hop(fleet: RunningFleet) -> Figures:
    """Measure messages to windows at the consuming bridge, then at the other one."""
    stage, scale = fleet.stage, fleet.stage.scale
    here, there = users(scale.windows), users(scale.windows, first=scale.windows)
    await fleet.open(here, at=0)
    await fleet.open(there, at=1)
    await stage.warm_up(here + there, scale.warm_up)
    figures: Figures = {}
    for name, some in (("here", here), ("there", there)):
        full = await stage.saturate(some, scale.backlog)
        steady = await stage.stream(some, scale.rate)
        figures |= {f"{name}_saturated_us": full["us"], f"{name}_us": steady["us"]}
    return figures | {
        "saturated_us": figures["there_saturated_us"] - figures["here_saturated_us"],
        "steady_us": figures["there_us"] - figures["here_us"],
    }


async def append(fleet: RunningFleet) -> Figures:
    """Measure the cost of storing messages for users without a window."""
    stage, scale = fleet.stage, fleet.stage.scale
    some = users(scale.windows)
    await fleet.open([_LAST], at=0)
    for member in fleet.servers.members[1:]:
        # A bridge without windows would not subscribe to the live feed.
        await stage.windows.open(member.port, users(20, first=10_000), syncs=True)
    await _store(fleet, some, scale.warm_up)
    await stage.windows.reset()
    fleet.servers.pause()
    before = fleet.used()  # paused bridges use no CPU, but the broker does
    stage.publisher.burst(fleet.exchange, some, scale.backlog)
    stage.publisher.burst(fleet.exchange, [_LAST], 1)
    start_s = perf_counter()
    fleet.servers.resume()
    await stage.windows.wait("events", 1)
    busy_s = perf_counter() - start_s
    used = fleet.used().since(before)
    figures = {
        "us": used.bridges[0] / scale.backlog,
        "broker_us": used.broker / scale.backlog,
        "store_us": used.store / scale.backlog,
    }
    if len(used.bridges) > 1:
        idle_us = await _idle_us(fleet, busy_s)
        extra_us = sum(used.bridges[1:]) - idle_us
        figures["bystander_us"] = extra_us / (len(used.bridges) - 1) / scale.backlog
    return figures


async def _idle_us(fleet: RunningFleet, seconds: float) -> float:
    """Return the CPU time of the other bridges in `seconds` without messages."""
    await asyncio.sleep(_REST_S)
    before, start_s = fleet.used(), perf_counter()
    await asyncio.sleep(max(seconds, _REST_S))
    used = fleet.used().since(before)
    return sum(used.bridges[1:]) * seconds / (perf_counter() - start_s)


async def _store(fleet: RunningFleet, some: list[str], number: int) -> None:
    """Publish `number` messages to users without a window; wait until they are stored."""
    await fleet.stage.windows.reset()
    fleet.stage.publisher.burst(fleet.exchange, some, number)
    fleet.stage.publisher.burst(fleet.exchange, [_LAST], 1)
    await fleet.stage.windows.wait("events", 1)


async def idle(fleet: RunningFleet) -> Figures:
    """Measure windows that connect and then only answer frequent pings."""
    stage = fleet.stage
    some = users(_IDLE_WINDOWS + 200)
    for user in some:
        stage.windows.token(user)  # outside of the measured time
    await fleet.open(some[:200])
    await asyncio.sleep(_REST_S)
    before, rss_kib = fleet.used(), fleet.servers.rss_kib()
    await fleet.open(some[200:])
    await asyncio.sleep(_REST_S)
    used = fleet.used().since(before)
    figures = {
        "connect_us": sum(used.bridges) / _IDLE_WINDOWS,
        "connect_store_us": used.store / _IDLE_WINDOWS,
        "window_kib": (fleet.servers.rss_kib() - rss_kib) / _IDLE_WINDOWS,
        "bridge_mib": rss_kib / 1024,
    }
    many_us = await _pings_us(fleet)
    await stage.windows.close(keep=200)
    await asyncio.sleep(_REST_S)
    few_us = await _pings_us(fleet)
    pings = _IDLE_WINDOWS * _IDLE_S / _PING_S
    return figures | {"ping_us": (many_us - few_us) / pings}


async def _pings_us(fleet: RunningFleet) -> float:
    before = fleet.used()
    await asyncio.sleep(_IDLE_S)
    return sum(fleet.used().since(before).bridges)


async def memory(fleet: RunningFleet) -> Figures:
    """What Redis holds for a user, and for each of a user's messages of 200 bytes."""
    some = users(_STORE_USERS)
    await fleet.open([_LAST], at=0)
    await _store(fleet, users(10), 100)
    empty = fleet.store_bytes()
    await _store(fleet, some, _STORE_USERS)
    one = fleet.store_bytes()
    await _store(fleet, some, _STORE_USERS * _STORE_MESSAGES)
    more = fleet.store_bytes()
    message = (more - one) / (_STORE_USERS * _STORE_MESSAGES)
    return {
        "user_bytes": (one - empty) / _STORE_USERS - message,
        "message_bytes": message,
    }


async def flood(fleet: RunningFleet) -> Figures:
    """Publish as fast as one worker can while the fleet delivers."""
    scale, stage = fleet.stage.scale, fleet.stage
    some = users(scale.windows)
    await fleet.open(some)
    await stage.warm_up(some, scale.warm_up)
    before = fleet.used()
    figures = await stage.flood(some, scale.backlog)
    used = fleet.used().since(before)
    return figures | {
        "broker_us": used.broker / scale.backlog,
        "store_us": used.store / scale.backlog,
    }


_ALONE: Final = FleetSetup("alone", 1, "sqlite:")
_PAIR: Final = FleetSetup("pair", 2)
_PINGS: Final = {"BRIDGE_PING_INTERVAL": f"{_PING_S}s"}

WORKLOADS: Final = {
    work.name: work
    for work in (
        FleetWorkload(
            "spread",
            (
                _ALONE,
                _PAIR,
                FleetSetup("four", 4),
                # The same traffic per bridge as with four.
                FleetSetup("calm", 2, traffic=0.5),
                FleetSetup("relaxed", 2, fsync="everysec"),
            ),
            spread,
        ),
        FleetWorkload("hop", (_PAIR,), hop),
        FleetWorkload("append", (_ALONE, _PAIR), append),
        FleetWorkload("flood", (_PAIR, FleetSetup("sharded", 2, shards=3)), flood),
        FleetWorkload("memory", (FleetSetup("one", 1),), memory),
        FleetWorkload("idle", (FleetSetup("one", 1, settings=_PINGS),), idle),
    )
}
