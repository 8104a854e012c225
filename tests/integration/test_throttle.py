"""Messages of throttled keys from a producer to pages, on each store and on two bridges."""

from pathlib import Path

from bridge.core.message_options import MessageOptions, render_options
from bridge.core.properties import PERSISTENT, Properties
from tests.conftest import eventually
from tests.integration.programs import command, settings_for_program
from tests.integration.running import (
    RawWindow,
    Worker,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
    two_bridges,
)
from tests.local_node import LocalNode


def throttled(throttle_s: float) -> Properties:
    """Return properties with a key and an interval."""
    options = MessageOptions(key="job", throttle_s=throttle_s)
    return Properties(delivery_mode=PERSISTENT, headers=render_options(options))


async def hold_back(worker: Worker, window: RawWindow, *, last: int) -> str:
    """
    Publish the values 0 to `last` of a key, and a message that overtakes the last one.

    Returns:
        The position of that message, once the window has received it.

    """
    for number in range(last + 1):
        await worker.publish("ann", number, properties=throttled(3600))
    await worker.publish("ann", "plain")
    await eventually(lambda: window.data() == [0, "plain"])
    return str(window.events[-1][2])


async def test_a_window_receives_few_updates_and_the_last_one(
    broker: LocalNode, namespace: str, inbox_url: str
) -> None:
    """All that it does not receive were replaced, so it has missed nothing."""
    async with (
        running_bridge(settings_for(broker, namespace, inbox=inbox_url)) as running,
        open_worker(broker, namespace) as worker,
    ):
        url, tokens = running.listening.public_url, [running.token("ann")]
        async with open_windows(url, tokens) as [window]:
            for number in range(60):
                await worker.publish("ann", number, properties=throttled(1.0))
            await eventually(lambda: 59 in window.data())

            numbers = [int(str(each)) for each in window.data()]
            assert numbers == sorted(set(numbers))
            left_out = running.sample("bridge_throttled_total")
            assert left_out == 60 - len(numbers) > 0
            position = str(window.events[-1][2])
        async with open_windows(url, tokens, position=position) as [window]:
            expected = {"replayed": 0, "complete": True, "missed": 0, "reason": None}
            assert window.sync == expected


async def test_a_window_that_closes_in_an_interval_receives_the_value_when_it_returns(
    broker: LocalNode, namespace: str, inbox_url: str
) -> None:
    """Its position says that it has the message that overtook the value."""
    async with (
        running_bridge(settings_for(broker, namespace, inbox=inbox_url)) as running,
        open_worker(broker, namespace) as worker,
    ):
        url, tokens = running.listening.public_url, [running.token("ann")]
        async with open_windows(url, tokens) as [window]:
            position = await hold_back(worker, window, last=2)

        async with open_windows(url, tokens, position=position) as [window]:
            await eventually(lambda: window.data() == [2])
            expected = {"replayed": 1, "complete": True, "missed": 0, "reason": None}
            assert window.sync == expected
        async with open_windows(url, tokens) as [window]:
            assert window.data() == []  # the page has closed in an orderly way


async def test_an_ack_does_not_cover_a_value_that_is_held_back(
    broker: LocalNode, namespace: str
) -> None:
    """A page that acks what it has must not lose what it has not."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
    ):
        url, tokens = running.listening.public_url, [running.token("ann")]
        async with open_windows(url, tokens, acks="manual") as [window]:
            position = await hold_back(worker, window, last=1)
            await window.websocket.send_str(f'420["ack","{position}"]')

        async with open_windows(url, tokens, acks="manual") as [window]:
            await eventually(lambda: window.data() == [1, "plain"])


async def test_the_command_publishes_with_an_interval_and_retains(
    broker: LocalNode, namespace: str
) -> None:
    """The value is held back from the window that is open, and each new one receives it."""
    values = settings_for_program(broker, namespace)
    async with running_bridge(settings_for(broker, namespace)) as running:
        url, tokens = running.listening.public_url, [running.token("ann")]
        publish = ("publish", "ann", "--event", "message", "--key", "job")
        async with open_windows(url, tokens) as [window]:
            for flags in (("1", "--retain"), ("2", "--throttle", "1h")):
                done = await command(*publish, *flags, "--throttle", "1h", **values)
                assert done.code == 0, done.err
            await eventually(lambda: running.settled("stored") == 2)
            assert window.data() == [1]
        async with open_windows(url, tokens) as [window]:
            assert window.data() == [2]
        async with open_windows(url, tokens) as [window]:
            assert window.data() == [2]
        assert (await command(*publish, "3", "--clear", **values)).code == 0
        async with open_windows(url, tokens) as [window]:
            assert window.data() == [3]
        async with open_windows(url, tokens) as [window]:
            assert window.data() == []

        refused = await command("publish", "ann", "1", "--retain", **values)
        assert refused.code == 2
        assert "--retain needs --key" in refused.err


async def test_windows_of_two_bridges_are_throttled(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """One of them consumes the queue, and the live feed brings the interval to the other."""
    async with (
        two_bridges(broker, namespace, tmp_path) as (one, other),
        open_worker(broker, namespace) as worker,
        open_windows(one.listening.public_url, [one.token("ann")]) as [near],
        open_windows(other.listening.public_url, [one.token("ann")]) as [far],
    ):
        for number in range(60):
            await worker.publish("ann", number, properties=throttled(1.0))

        await eventually(lambda: 59 in near.data() and 59 in far.data())
        assert len(near.data()) < 60
        assert len(far.data()) < 60
