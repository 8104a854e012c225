"""A message that was delivered in time is not reported as undelivered, whatever Redis does."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import time

import pytest

from bridge.core.message import Message
from bridge.core.message_options import MessageOptions, Tracking
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.encoding import tag_of
from bridge.inbox.redis.timing import RedisTiming
from tests.conftest import SLOW_FACTOR, eventually
from tests.faults.suite.proxy import Proxy
from tests.redis_bridges import BridgeInbox, bridge_on, cut_off
from tests.redis_server import RedisServer

AFTER_S = 4.0 * SLOW_FACTOR
# The other bridge has looked at the time often enough to be sure that it would decide.
LOOK_S = 3.0


@dataclass
class Fleet:
    """Two bridges on one Redis. Ann has a window on the first one."""

    near: BridgeInbox
    to_near: Proxy
    far: BridgeInbox
    to_far: Proxy
    told: list[str] = field(default_factory=list)

    async def take(self, *bridges: BridgeInbox) -> None:
        """Let bridges publish what they find, as far as they can."""
        for bridge in bridges:
            with suppress(StoreUnavailableError):
                events = await bridge.inbox.pending_events(100)
                await bridge.inbox.confirm_events(events)
                self.told += [event.routing_key for event in events]

    async def take_until(
        self, is_done: Callable[[], bool], *bridges: BridgeInbox
    ) -> None:
        """Let bridges publish until a condition is true."""

        async def take() -> bool:
            await self.take(*bridges)
            return is_done()

        await eventually(take, within_s=30.0)

    async def deliver(self) -> float:
        """Deliver a message to ann while the bridge cannot write it; return when it is late."""
        await self.near.inbox.follow("ann")
        for bridge in (self.near, self.near, self.far, self.far):
            await self.take(bridge)
        message = tracked("ann", undelivered_after_s=AFTER_S)
        await self.far.append([message])
        await eventually(lambda: "ann" in self.near.inbox.tracked)
        cut(self.to_near)
        self.near.inbox.mark_delivered("ann", 1)
        late_s = message.taken_s + AFTER_S
        assert time() < late_s
        return late_s


def tracked(user: str, *, undelivered_after_s: float | None = None) -> Message:
    """Return a message that asks for a receipt."""
    tracking = Tracking(wants_receipt=True, undelivered_after_s=undelivered_after_s)
    message = Message(user, "message", b"1", time())
    message.options = MessageOptions(tracking=tracking)
    return message


def cut(proxy: Proxy) -> None:
    """Cut a bridge from Redis until `heal`."""
    proxy.refuse()
    proxy.cut()


@asynccontextmanager
async def fleet_on(folder: Path, *, gone_s: float = 1000.0) -> AsyncIterator[Fleet]:
    """Run Redis and the two bridges."""
    async with (
        RedisServer.start(folder) as server,
        cut_off(server) as (to_near, near_url),
        cut_off(server) as (to_far, far_url),
        bridge_on(near_url) as near,
        bridge_on(far_url, timing=RedisTiming(gone_s=gone_s)) as far,
    ):
        yield Fleet(near, to_near, far, to_far)


async def test_another_bridge_waits_for_one_that_cannot_reach_redis(
    tmp_path: Path,
) -> None:
    """It looks at the time without any problem, but does not know that ann has the message."""
    async with fleet_on(tmp_path) as fleet:
        late_s = await fleet.deliver()
        await fleet.take_until(lambda: time() > late_s + LOOK_S, fleet.far)
        assert fleet.told == []

        fleet.to_near.heal()
        await fleet.take_until(lambda: bool(fleet.told), fleet.near, fleet.far)
        assert fleet.told == ["message.delivered"]


async def test_after_an_outage_the_first_bridge_waits_for_the_others(
    tmp_path: Path,
) -> None:
    """All of them lost Redis, and one is back earlier."""
    async with fleet_on(tmp_path) as fleet:
        late_s = await fleet.deliver()
        cut(fleet.to_far)
        await fleet.take_until(lambda: time() > late_s, fleet.near, fleet.far)
        fleet.to_far.heal()
        await fleet.far.until_usable()
        await fleet.take_until(lambda: time() > late_s + LOOK_S, fleet.far)
        assert fleet.told == []

        fleet.to_near.heal()
        await fleet.take_until(lambda: bool(fleet.told), fleet.near, fleet.far)
        assert fleet.told == ["message.delivered"]


async def test_a_bridge_that_is_gone_holds_nothing_up(tmp_path: Path) -> None:
    """After a crash its marks are lost, and nothing else is known."""
    async with fleet_on(tmp_path, gone_s=1.0) as fleet:
        await fleet.deliver()

        await fleet.take_until(lambda: bool(fleet.told), fleet.far)
        assert fleet.told == ["message.undelivered"]
        fleet.to_near.heal()


async def test_the_events_of_a_bridge_that_is_gone_are_published_by_another_one(
    tmp_path: Path,
) -> None:
    """It has read them, and nothing says whether it has published them."""
    async with fleet_on(tmp_path) as fleet:
        await fleet.near.append([tracked("ann")])
        fleet.near.inbox.mark_delivered("ann", 1)
        read: list[str] = []

        async def is_read() -> bool:
            events = await fleet.near.inbox.pending_events(100)
            read.extend(event.id for event in events)
            return bool(read)

        await eventually(is_read)
        await fleet.take(fleet.far)
        assert fleet.told == []
        cut(fleet.to_near)

        await fleet.take_until(lambda: bool(fleet.told), fleet.far)
        assert fleet.told == ["message.delivered"]
        fleet.to_near.heal()


async def test_a_receipt_is_noted_once_if_its_batch_is_completed_later(
    tmp_path: Path,
) -> None:
    """Its outcome is decided and published before another user of the batch is stored."""
    async with RedisServer.start(tmp_path) as server, bridge_on(server.url) as bridge:
        inbox = bridge.inbox
        broken = f"{inbox.prefixes[tag_of('bob')]}m:bob"
        server.command("SET", broken, "no list")
        batch = [tracked("ann"), Message("bob", "message", b"1", time())]
        with pytest.raises(StoreUnavailableError, match="WRONGTYPE"):
            await inbox.append(batch)
        inbox.mark_delivered("ann", 1)
        told: list[str] = []

        async def is_told() -> bool:
            events = await inbox.pending_events(100)
            await inbox.confirm_events(events)
            told.extend(event.routing_key for event in events)
            return bool(told)

        await eventually(is_told)
        server.command("DEL", broken)
        assert await inbox.append(batch) == [1, 1]

        assert await inbox.pending_events(100) == []
