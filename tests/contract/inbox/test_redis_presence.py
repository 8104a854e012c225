"""
Presence in a fleet: users move between bridges, which end, stand still and lose Redis.

All leases and debounces are long. A test lets them pass by deleting the keys whose times to live
tell that they last.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import orjson
import pytest

from bridge.core.receipts import WorkerEvent
from bridge.core.redis_address import parse_redis
from bridge.inbox.contract import Retention
from bridge.inbox.redis.encoding import tag_of
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming
from tests.conftest import eventually
from tests.contract.inbox import conftest
from tests.contract.inbox.files import Clock, message
from tests.contract.inbox.test_presence import changes
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)
DEBOUNCE_S = 600.0
# The keys that last as long as leases, the debounce of users who left, and polls of the tags.
LEASES, DEBOUNCES, POLLS = "l:*", "q:*", "y"


class UsersBridge:
    """A bridge that has windows of some users, and notes them as a reporter does."""

    def __init__(self, inbox: RedisInbox) -> None:
        self.inbox = inbox
        self._windows: dict[str, int] = {}
        self._changed: dict[str, int] = {}

    def set(self, **windows: int) -> None:
        """Change how many windows users have here; `work` notes it."""
        self._windows |= windows
        self._changed |= windows

    async def work(self) -> bool:
        """Note what has changed, and poll all tags; return whether all was noted."""
        changed, self._changed = self._changed, {}
        is_lost = await self.inbox.note_presence(changed, debounce_s=DEBOUNCE_S)
        if is_lost is not None:
            lost = {user: n for user, n in self._windows.items() if n and is_lost(user)}
            self._changed = lost | self._changed
        return is_lost is None


class UsersFleet:
    """Bridges that share one store, and a worker that receives the events."""

    def __init__(self, url: str) -> None:
        self.bridges: list[UsersBridge] = []
        self.namespace = f"t{secrets.token_hex(4)}"
        self._url = url
        self._clock = Clock()

    @asynccontextmanager
    async def bridge(
        self, timing: RedisTiming = DEFAULT_TIMING
    ) -> AsyncIterator[UsersBridge]:
        """Open the store as one more bridge; at the end it is gone as if it was killed."""
        inbox = RedisInbox(
            parse_redis(self._url),
            RETENTION,
            namespace=self.namespace,
            clock=self._clock.steady,
            timing=timing,
        )
        await inbox.open()
        bridge = UsersBridge(inbox)
        self.bridges.append(bridge)
        try:
            yield bridge
        finally:
            self.bridges.remove(bridge)
            await inbox.close()

    def advance(self, by_s: float) -> None:
        """Let time pass for all bridges, but not for the server."""
        self._clock.now_s += by_s

    def set_back(self, by_s: float) -> None:
        """Set the wall clock of all bridges back."""
        self._clock.jump(-by_s)

    async def reported(self) -> list[tuple[str, str]]:
        """Let all bridges work until all is noted; return what was reported."""
        return sorted(changes(await self.events()))

    async def events(self) -> list[WorkerEvent]:
        """Let all bridges work until all is noted; return what they publish."""

        async def is_noted() -> bool:
            self._clock.now_s += 3  # a poll is due
            return all([await bridge.work() for bridge in self.bridges])

        await eventually(is_noted)
        await is_noted()  # what one bridge has noted may be due for another
        found: list[WorkerEvent] = []
        for bridge in self.bridges:
            events = await bridge.inbox.pending_events(5000)
            await bridge.inbox.confirm_events(events)
            found += events
        return found

    async def come(self, **bridges: UsersBridge) -> None:
        """Open the first window of each user, on a bridge; all of them are reported."""
        for user, bridge in bridges.items():
            bridge.set(**{user: 1})
        assert await self.reported() == online(*bridges)

    async def leave(self, **bridges: UsersBridge) -> None:
        """Close the windows of each user on a bridge; none of them is reported yet."""
        for user, bridge in bridges.items():
            bridge.set(**{user: 0})
        assert await self.reported() == []

    async def reported_after(self, *names: str) -> list[tuple[str, str]]:
        """Let leases or debounces pass, and return what is reported then."""
        await self.let_pass(*names)
        return await self.reported()

    async def let_pass(self, *names: str) -> None:
        """Delete keys of all tags."""
        for name in names:
            assert await self.delete(f"{self.namespace}/0:{{*}}:{name}"), name

    async def delete(self, pattern: str) -> int:
        """Delete the keys of a pattern; return how many there were."""
        deleted = [await self._ask("DEL", key) for key in await self._keys(pattern)]
        return deleted.count(":1")

    async def lives(self, name: str) -> int:
        """Return for how many milliseconds the keys of a name live at least; -1 = always."""
        keys = await self._keys(f"{self.namespace}/0:{{*}}:{name}")
        return min([int((await self._ask("PTTL", key))[1:]) for key in keys])

    async def _keys(self, pattern: str) -> list[str]:
        lines = (await self._ask("KEYS", pattern)).split("\n")
        return [line for line in lines if line.startswith(self.namespace)]

    async def _ask(self, *words: str) -> str:
        (host,) = parse_redis(self._url).hosts
        server = RedisServer(Path(), port=host.port, options={})
        return await asyncio.to_thread(server.command, *words)


@pytest.fixture(params=["redis", "redis_cluster"])
def fleet(request: pytest.FixtureRequest) -> UsersFleet:
    """A fleet without bridges, on one server and in a cluster."""
    return UsersFleet(getattr(conftest, request.param).url)


def online(*users: str) -> list[tuple[str, str]]:
    return [(user, "user.online") for user in users]


def offline(*users: str) -> list[tuple[str, str]]:
    return [(user, "user.offline") for user in users]


async def test_a_user_with_windows_on_two_bridges_is_reported_once(
    fleet: UsersFleet,
) -> None:
    """Offline follows the last window anywhere."""
    async with fleet.bridge() as one, fleet.bridge() as two:
        one.set(ann=1)
        two.set(ann=2, ben=1)
        assert await fleet.reported() == online("ann", "ben")
        await fleet.leave(ann=one, ben=two)
        assert await fleet.reported_after(DEBOUNCES) == offline("ben")
        await fleet.leave(ann=two)
        assert await fleet.reported_after(DEBOUNCES) == offline("ann")


async def test_a_user_who_moves_to_another_bridge_is_not_reported(
    fleet: UsersFleet,
) -> None:
    """A load balancer chooses another one at each reconnect."""
    async with fleet.bridge() as one, fleet.bridge() as two:
        await fleet.come(ann=one, ben=one)
        await fleet.leave(ann=one, ben=one)
        two.set(ann=1)
        assert await fleet.reported() == []
        assert await fleet.reported_after(DEBOUNCES) == offline("ben")


async def test_users_of_a_bridge_that_ended_are_reported_by_the_others(
    fleet: UsersFleet,
) -> None:
    """Except those who still have a window on another bridge, or have one by then."""
    async with fleet.bridge() as other:
        async with fleet.bridge() as ending:
            ending.set(ann=1, ben=1, cat=1)
            other.set(cat=1, dan=1)
            assert await fleet.reported() == online("ann", "ben", "cat", "dan")
        assert await fleet.reported() == []
        await fleet.let_pass(LEASES)
        other.set(ben=1)
        assert await fleet.reported() == []
        assert await fleet.reported_after(DEBOUNCES) == offline("ann")

        await fleet.leave(ben=other, cat=other)
        assert await fleet.reported_after(DEBOUNCES) == offline("ben", "cat")


async def test_a_new_bridge_reports_the_users_of_a_fleet_that_ended(
    fleet: UsersFleet,
) -> None:
    """It cannot know whether the others are starting, so it waits for one more lease."""
    async with fleet.bridge() as one, fleet.bridge() as two:
        await fleet.come(ann=one, ben=two)
    await fleet.let_pass(LEASES, POLLS)
    async with fleet.bridge() as new:
        new.set(ben=1)
        assert await fleet.reported() == []
        assert await fleet.delete(f"{fleet.namespace}/0:*:q:*") == 0
        assert await fleet.reported_after(LEASES) == []
        assert await fleet.reported_after(DEBOUNCES) == offline("ann")


async def test_a_bridge_that_stood_still_notes_its_users_again(
    fleet: UsersFleet,
) -> None:
    """They were offline for the others, because their windows may have been gone."""
    async with fleet.bridge() as other, fleet.bridge() as still:
        await fleet.come(ann=still, ben=still)
        fleet.bridges.remove(still)
        await fleet.let_pass(LEASES)
        other.set(ben=1)
        await fleet.reported()
        assert await fleet.reported_after(DEBOUNCES) == offline("ann")

        fleet.bridges.append(still)
        assert await fleet.reported() == online("ann")
        still.set(ben=0)
        other.set(ben=0)
        await fleet.reported()
        assert await fleet.reported_after(DEBOUNCES) == offline("ben")


async def test_a_fleet_that_could_not_reach_redis_keeps_its_users(
    fleet: UsersFleet,
) -> None:
    """The bridge that is back first must not report the users of the others."""
    async with fleet.bridge() as one, fleet.bridge() as two:
        await fleet.come(ann=one, ben=two)
        await fleet.let_pass(LEASES, POLLS)
        fleet.bridges.remove(two)
        for _ in range(3):
            assert await fleet.reported() == []
        fleet.bridges.append(two)
        assert await fleet.reported() == []
        # The old sessions end some time later, and hold no user.
        assert await fleet.reported_after(LEASES) == []
        await fleet.leave(ann=one, ben=two)
        assert await fleet.reported_after(DEBOUNCES) == offline("ann", "ben")


async def test_users_who_left_before_an_outage_have_time_to_return(
    fleet: UsersFleet,
) -> None:
    """Another bridge may not have noted yet that a user is there."""
    async with fleet.bridge() as one, fleet.bridge() as two:
        await fleet.come(ann=one, ben=one)
        await fleet.leave(ann=one, ben=one)
        fleet.bridges.remove(two)
        assert await fleet.reported_after(LEASES, POLLS, DEBOUNCES) == []
        two.set(ann=1)
        fleet.bridges.append(two)
        assert await fleet.reported() == []
        assert await fleet.reported_after(DEBOUNCES) == offline("ben")


async def test_a_server_that_has_lost_everything_learns_who_is_online(
    fleet: UsersFleet,
) -> None:
    """Workers are told again that a user is online, with a larger `seq`."""
    async with fleet.bridge() as one:
        await fleet.come(ann=one, ben=one)
        assert await fleet.delete(f"{fleet.namespace}/0:*:[^h]*")
        assert await fleet.reported() == online("ann", "ben")


async def test_users_who_left_before_a_server_lost_everything_are_reported(
    fleet: UsersFleet,
) -> None:
    """Workers believe that they are online, and the server does not know them any more."""
    near = next(name for name in map(str, count()) if tag_of(name) == tag_of("ben"))
    async with fleet.bridge() as other, fleet.bridge() as one:
        one.set(ann=1, ben=1, cat=1, dan=1)
        other.set(**{near: 1})
        assert await fleet.reported() == online(near, "ann", "ben", "cat", "dan")
        one.set(ben=0, dan=0)
        assert await fleet.reported() == []
        assert await fleet.delete(f"{fleet.namespace}/0:*")
        one.set(cat=0)
        other.set(dan=1)
        # The tag of ben has the data of another bridge when this one is called.
        fleet.advance(3)
        assert not await other.work()
        assert await other.work()
        assert await fleet.reported() == online(near, "ann", "dan")
        await fleet.let_pass(DEBOUNCES)
        assert await fleet.reported() == offline("ben", "cat")
        assert await fleet.reported() == []

        one.set(ben=1)
        assert await fleet.reported() == online("ben")


async def test_users_who_left_before_a_second_loss_are_reported(
    fleet: UsersFleet,
) -> None:
    """No message was stored since the first one, so the tag has no epoch that could change."""
    async with fleet.bridge() as one:
        await fleet.come(ben=one)
        assert await fleet.delete(f"{fleet.namespace}/0:*")
        assert await fleet.reported() == online("ben")
        await fleet.leave(ben=one)
        assert await fleet.delete(f"{fleet.namespace}/0:*")
        assert await fleet.reported() == []
        assert await fleet.reported_after(DEBOUNCES) == offline("ben")
        assert await fleet.reported() == []


async def test_users_who_left_before_an_outage_that_ends_with_two_losses_are_reported(
    fleet: UsersFleet,
) -> None:
    """The time until they must be offline begins with the first session after the outage."""
    async with fleet.bridge() as one:
        await fleet.come(ben=one)
        await fleet.leave(ben=one)
        fleet.advance(DEBOUNCE_S + 60)
        for _ in range(2):
            assert await fleet.delete(f"{fleet.namespace}/0:*")
            assert await fleet.reported() == []
        assert await fleet.reported_after(DEBOUNCES) == offline("ben")


async def test_a_session_that_ends_without_a_loss_reports_no_user_again(
    fleet: UsersFleet,
) -> None:
    """The bridge stood still, and remembers a user whom the server has reported since."""
    async with fleet.bridge() as one:
        await one.inbox.append([message("ben", b"{}")])
        await fleet.come(ben=one)
        await fleet.leave(ben=one)
        assert await fleet.reported_after(DEBOUNCES) == offline("ben")
        assert await fleet.reported_after(LEASES) == []
        assert await fleet.delete(f"{fleet.namespace}/0:{{*}}:{DEBOUNCES}") == 0
        assert await fleet.reported() == []


async def test_a_window_that_was_closed_before_the_first_call_is_not_reported(
    fleet: UsersFleet,
) -> None:
    """The bridge does not know the epoch yet; its user may never have been online."""
    async with fleet.bridge() as one:
        await one.inbox.append([message("ben", b"{}")])
        await fleet.leave(ben=one)
        assert await fleet.delete(f"{fleet.namespace}/0:{{*}}:{DEBOUNCES}") == 0


async def test_the_first_message_after_a_loss_reports_no_user_again(
    fleet: UsersFleet,
) -> None:
    """It gives the tag an epoch; the bridge still remembers who left since the loss."""
    async with fleet.bridge() as one:
        await fleet.come(ann=one, ben=one)
        assert await fleet.delete(f"{fleet.namespace}/0:*")
        assert await fleet.reported() == online("ann", "ben")
        await fleet.leave(ben=one)
        assert await fleet.reported_after(DEBOUNCES) == offline("ben")
        await one.inbox.append([message("ben", b"{}")])
        assert await fleet.reported() == []
        assert await fleet.delete(f"{fleet.namespace}/0:*:{DEBOUNCES}") == 0
        assert await fleet.reported() == []


async def test_users_noted_after_a_loss_wait_until_all_bridges_have_polled(
    fleet: UsersFleet,
) -> None:
    """A user may have moved to a bridge that has not noted its users again."""
    poll_s = 600
    timing = RedisTiming(presence_poll_s=poll_s)
    async with fleet.bridge(timing) as one:
        await fleet.come(ben=one)
        await fleet.leave(ben=one)
        assert await fleet.delete(f"{fleet.namespace}/0:*")
        fleet.advance(poll_s)
        assert await one.inbox.note_presence({}, debounce_s=1) is not None
        fleet.advance(poll_s)
        assert await one.inbox.note_presence({}, debounce_s=1) is None
        assert await fleet.lives(DEBOUNCES) > 1000 * poll_s


async def test_users_who_were_offline_long_before_a_loss_are_not_reported(
    fleet: UsersFleet,
) -> None:
    """A bridge remembers those who left only until they must have been reported."""
    async with fleet.bridge() as one:
        one.set(ann=1, ben=1)
        assert await fleet.reported() == online("ann", "ben")
        one.set(ben=0)
        await fleet.reported()
        await fleet.let_pass(DEBOUNCES)
        assert await fleet.reported() == offline("ben")
        fleet.advance(DEBOUNCE_S + 60)
        await fleet.reported()
        assert await fleet.delete(f"{fleet.namespace}/0:*")
        assert await fleet.reported() == online("ann")
        assert await fleet.delete(f"{fleet.namespace}/0:*:{DEBOUNCES}") == 0
        assert await fleet.reported() == []


async def test_seq_grows_after_a_loss_although_the_clock_was_set_back(
    fleet: UsersFleet,
) -> None:
    """A worker drops what seems older than what it has received."""
    async with fleet.bridge() as one:
        one.set(ann=1)
        (before,) = await fleet.events()
        assert await fleet.delete(f"{fleet.namespace}/0:*")
        fleet.set_back(86_400)
        (after,) = await fleet.events()
        seqs = [orjson.loads(event.body)["seq"] for event in (before, after)]
        assert seqs[0] < seqs[1]


async def test_users_who_left_during_an_outage_that_lost_everything_are_reported(
    tmp_path: Path,
) -> None:
    """A server without persistence that was restarted, or a failover to an empty replica."""
    async with RedisServer.start(tmp_path, is_durable=False) as server:
        fleet = UsersFleet(server.url)
        async with fleet.bridge() as one:
            one.set(ann=1, ben=1, cat=1)
            assert await fleet.reported() == online("ann", "ben", "cat")
            one.set(cat=0)
            assert await fleet.reported() == []
            await asyncio.to_thread(server.kill)
            one.set(ben=0)
            assert not await one.work()
            fleet.advance(DEBOUNCE_S + 60)
            assert not await one.work()
            await asyncio.to_thread(server.run)
            assert await fleet.reported() == online("ann")
            await fleet.let_pass(DEBOUNCES)
            assert await fleet.reported() == offline("ben", "cat")


async def test_a_restart_that_loses_everything_a_second_time_is_noticed(
    tmp_path: Path,
) -> None:
    """The tag had no epoch, and the bridge does not know what its session has done."""
    async with RedisServer.start(tmp_path, is_durable=False) as server:
        fleet = UsersFleet(server.url)
        async with fleet.bridge() as one:
            await fleet.come(ben=one)
            await asyncio.to_thread(server.command, "FLUSHALL")
            assert await fleet.reported() == online("ben")
            await fleet.leave(ben=one)
            await asyncio.to_thread(server.kill)
            fleet.advance(3)
            assert not await one.work()
            await asyncio.to_thread(server.restart, is_empty=True)
            assert await fleet.reported() == []
            assert await fleet.reported_after(DEBOUNCES) == offline("ben")


async def test_a_failover_that_loses_the_last_writes_loses_no_change(
    tmp_path: Path,
) -> None:
    """The new master looks sound: only the number of the last call is not what it was."""
    async with RedisServer.start(tmp_path, is_durable=False) as server:
        fleet = UsersFleet(server.url)
        async with fleet.bridge() as one:
            await fleet.come(ann=one)
            await asyncio.to_thread(server.command, "SAVE")
            one.set(ann=0, ben=1)
            assert await fleet.reported() == online("ben")
            await asyncio.to_thread(server.restart)

            assert await fleet.reported() == online("ben")
            assert await fleet.reported_after(LEASES) == []
            assert await fleet.reported_after(DEBOUNCES) == offline("ann")


async def test_a_bridge_without_redis_notes_everything_when_it_is_back(
    tmp_path: Path,
) -> None:
    """Also what has changed meanwhile; nothing is reported twice."""
    async with RedisServer.start(tmp_path) as server:
        fleet = UsersFleet(server.url)
        async with fleet.bridge() as one:
            await fleet.come(ann=one, ben=one)
            await asyncio.to_thread(server.kill)
            one.set(ann=0, cat=1)
            assert not await one.work()
            assert not await one.work()
            await asyncio.to_thread(server.run)
            assert await fleet.reported() == online("cat")
            await fleet.reported_after(LEASES)
            assert await fleet.reported_after(DEBOUNCES) == offline("ann")


async def test_all_keys_go_when_presence_is_turned_off(fleet: UsersFleet) -> None:
    """Nothing deletes them then, except their times to live."""
    async with fleet.bridge() as one:
        await fleet.come(ann=one, ben=one)
        await fleet.leave(ben=one)
    for name in ("p", "p:*", "l", "l:*", "q", "q:*", "y"):
        assert await fleet.lives(name) > 0, name


async def test_a_user_whose_windows_flap_costs_no_events(fleet: UsersFleet) -> None:
    """A page in a loop of reloads."""
    async with fleet.bridge() as one, fleet.bridge() as two:
        await fleet.come(ann=one)
        for number in range(8):
            one.set(ann=number % 2)
            two.set(ann=(number // 2) % 2)
            assert await fleet.reported() == []
