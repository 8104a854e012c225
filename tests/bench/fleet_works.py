"""
The works of a fleet, and what each of them measures, in microseconds and bytes.

Each gets a fleet that was just started. A message of 200 bytes, confirmed; `us` is the
processor time of all bridges together, from before the work until all delivered marks
are written, for each delivery.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Final

from tests.bench.fleet_world import Fleet, SetUp
from tests.bench.works import Figures, users

# Its message comes last, and after it all others are stored: the queue keeps the order.
_LAST: Final = "the-last-one"
_IDLE_WINDOWS: Final = 2000
_IDLE_S: Final = 6.0
_PING_S: Final = 2
_STORE_USERS: Final = 5000
_STORE_MESSAGES: Final = 9
_REST_S: Final = 1.5
_TIMES: Final = 3


@dataclass(frozen=True, slots=True)
class Work:
    """What is done, on which set-ups."""

    name: str
    set_ups: tuple[SetUp, ...]
    do: Callable[[Fleet], Awaitable[Figures]]


async def spread(fleet: Fleet) -> Figures:
    """Windows of 200 users, spread over all bridges: a backlog, then a steady stream."""
    scale, stage = fleet.stage.scale, fleet.stage
    some = users(scale.windows)
    await fleet.open(some)
    # Each process has its first times: of those there are more where there are more.
    await stage.saturate(some, scale.warm_up * len(fleet.herd.members))
    before = fleet.used()
    full = [await stage.saturate(some, scale.backlog) for _ in range(_TIMES)]
    used = fleet.used().since(before)
    figures = {
        "saturated_us": median(each["us"] for each in full),
        "saturated_broker_us": used.broker / scale.backlog / _TIMES,
        "saturated_store_us": used.store / scale.backlog / _TIMES,
    }
    before = fleet.used()
    steady = await stage.stream(some, scale.rate * fleet.set_up.traffic)
    used = fleet.used().since(before)
    number = sum(used.bridges) / steady["us"]
    return figures | {
        "steady_us": steady["us"],
        "steady_p50_ms": steady["p50_ms"],
        "steady_p99_ms": steady["p99_ms"],
        "steady_broker_us": used.broker / number,
        "steady_store_us": used.store / number,
    }


async def hop(fleet: Fleet) -> Figures:
    """The same messages to windows at the bridge that consumes, then at the other one."""
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


async def append(fleet: Fleet) -> Figures:
    """Messages for users without a window: what storing costs, and who pays for it."""
    stage, scale = fleet.stage, fleet.stage.scale
    some = users(scale.windows)
    await fleet.open([_LAST], at=0)
    for member in fleet.herd.members[1:]:
        # A bridge that nobody is connected to would follow nobody at all.
        await stage.windows.open(member.port, users(20, first=10_000), syncs=True)
    await _store(fleet, some, scale.warm_up)
    await stage.windows.reset()
    fleet.herd.freeze()
    before = fleet.used()  # what stands still uses nothing, the broker does
    stage.publisher.burst(fleet.exchange, some, scale.backlog)
    stage.publisher.burst(fleet.exchange, [_LAST], 1)
    began_s = perf_counter()
    fleet.herd.thaw()
    await stage.windows.wait("events", 1)
    busy_s = perf_counter() - began_s
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


async def _idle_us(fleet: Fleet, seconds: float) -> float:
    """Return what the bridges that do not consume use in `seconds` without any message."""
    await asyncio.sleep(_REST_S)
    before, began_s = fleet.used(), perf_counter()
    await asyncio.sleep(max(seconds, _REST_S))
    used = fleet.used().since(before)
    return sum(used.bridges[1:]) * seconds / (perf_counter() - began_s)


async def _store(fleet: Fleet, some: list[str], number: int) -> None:
    """Publish `number` messages to users without a window and wait until they are stored."""
    await fleet.stage.windows.reset()
    fleet.stage.publisher.burst(fleet.exchange, some, number)
    fleet.stage.publisher.burst(fleet.exchange, [_LAST], 1)
    await fleet.stage.windows.wait("events", 1)


async def idle(fleet: Fleet) -> Figures:
    """Windows that connect and then do nothing but answer pings, of which there are many."""
    stage = fleet.stage
    some = users(_IDLE_WINDOWS + 200)
    for user in some:
        stage.windows.token(user)  # signing is not what is measured
    await fleet.open(some[:200])
    await asyncio.sleep(_REST_S)
    before, rss_kib = fleet.used(), fleet.herd.rss_kib()
    await fleet.open(some[200:])
    await asyncio.sleep(_REST_S)
    used = fleet.used().since(before)
    figures = {
        "connect_us": sum(used.bridges) / _IDLE_WINDOWS,
        "connect_store_us": used.store / _IDLE_WINDOWS,
        "window_kib": (fleet.herd.rss_kib() - rss_kib) / _IDLE_WINDOWS,
        "bridge_mib": rss_kib / 1024,
    }
    many_us = await _pings_us(fleet)
    await stage.windows.close(keep=200)
    await asyncio.sleep(_REST_S)
    few_us = await _pings_us(fleet)
    pings = _IDLE_WINDOWS * _IDLE_S / _PING_S
    return figures | {"ping_us": (many_us - few_us) / pings}


async def _pings_us(fleet: Fleet) -> float:
    before = fleet.used()
    await asyncio.sleep(_IDLE_S)
    return sum(fleet.used().since(before).bridges)


async def memory(fleet: Fleet) -> Figures:
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


async def flood(fleet: Fleet) -> Figures:
    """As fast as one worker can publish while all of it is delivered."""
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


_ALONE: Final = SetUp("alone", 1, "sqlite:")
_PAIR: Final = SetUp("pair", 2)
_PINGS: Final = {"BRIDGE_PING_INTERVAL": f"{_PING_S}s"}

WORKS: Final = {
    work.name: work
    for work in (
        Work(
            "spread",
            (
                _ALONE,
                _PAIR,
                SetUp("four", 4),
                # As much for each bridge as with four.
                SetUp("calm", 2, traffic=0.5),
                SetUp("relaxed", 2, fsync="everysec"),
            ),
            spread,
        ),
        Work("hop", (_PAIR,), hop),
        Work("append", (_ALONE, _PAIR), append),
        Work("flood", (_PAIR, SetUp("sharded", 2, shards=3)), flood),
        Work("memory", (SetUp("one", 1),), memory),
        Work("idle", (SetUp("one", 1, settings=_PINGS),), idle),
    )
}
