"""A whole bridge with a real RabbitMQ: from the exchange to every window of a user."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery, Message
from bridge.core.properties import (
    Properties,
    header_bytes,
    header_int,
    render_properties,
    render_table,
)
from bridge.enums import Header
from bridge.settings.model import Settings
from tests.conftest import eventually
from tests.integration.amqp.conftest import open_raw
from tests.integration.dead_letters import take_all
from tests.integration.running import (
    Worker,
    open_windows,
    open_worker,
    post,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode


@pytest.fixture
async def worker(broker: LocalNode, namespace: str) -> AsyncIterator[Worker]:
    """Connect a worker that publishes to the exchange of this test."""
    async with open_worker(broker, namespace) as worker:
        yield worker


async def dead_letters(
    broker: LocalNode, namespace: str, number: int
) -> list[Delivery]:
    """Wait for `number` dead letters and return them, oldest first."""
    found: list[Delivery] = []

    async def have_arrived() -> bool:
        found.extend(await take_all(broker, BrokerNames(namespace).dead))
        return len(found) >= number

    await eventually(have_arrived)
    return found


async def test_a_message_reaches_all_windows_of_its_user_only(
    broker: LocalNode, namespace: str, worker: Worker
) -> None:
    """This is the purpose of bridge."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        tokens = [running.token(user) for user in ("ann", "ann", "bob")]
        async with open_windows(running.listening.public_url, tokens) as windows:
            await worker.publish("ann", {"text": "hello"})
            await worker.publish("bob", {"text": "you"})
            await eventually(lambda: all(window.data() for window in windows))

            assert [window.data() for window in windows] == [
                [{"text": "hello"}],
                [{"text": "hello"}],
                [{"text": "you"}],
            ]


async def test_6_000_messages_for_200_users_arrive_once_each_and_in_order(
    broker: LocalNode, namespace: str, worker: Worker
) -> None:
    """Nothing is lost, repeated or reordered under a load that fills batches."""
    users = [f"user-{number}" for number in range(200)]
    async with running_bridge(settings_for(broker, namespace)) as running:
        tokens = [running.token(user) for user in users]

        async def publish_for(user: str) -> None:
            for number in range(30):
                await worker.publish(user, number)

        async with open_windows(running.listening.public_url, tokens) as windows:
            async with asyncio.TaskGroup() as tasks:
                for user in users:
                    tasks.create_task(publish_for(user), name=user)
            await eventually(
                lambda: sum(len(window.data()) for window in windows) >= 6_000,
                within_s=30,
            )

            assert all(window.data() == list(range(30)) for window in windows)
            await eventually(lambda: running.settled("stored") == 6_000)
            await eventually(lambda: running.bridge.components.intake.in_flight == 0)


@pytest.mark.parametrize(
    ("user", "body", "properties", "reason"),
    [
        pytest.param(b"ann", b"", {}, "malformed_body", id="empty"),
        pytest.param(b"ann", b'"\xff"', {}, "malformed_body", id="not-utf-8"),
        pytest.param(b"ann", b"{", {}, "malformed_body", id="not-json"),
        pytest.param(b"ann", b"NaN", {}, "malformed_body", id="nan"),
        pytest.param(
            b"ann", b"[" * 10_000 + b"]" * 10_000, {}, "malformed_body", id="deep"
        ),
        pytest.param(b"ann", b'"' + b"x" * 5000 + b'"', {}, "too_large", id="large"),
        pytest.param(b"", b"1", {}, "bad_user", id="no-user"),
        pytest.param(b"a\nb", b"1", {}, "bad_user", id="control-character"),
        pytest.param(b"\xff\xfe", b"1", {}, "bad_user", id="user-not-utf-8"),
        pytest.param(
            b"ann", b"1", {"type": b"connect"}, "bad_event", id="reserved-event"
        ),
        pytest.param(
            b"ann", b"1", {"type": b"bridge:x"}, "bad_event", id="bridge-event"
        ),
        pytest.param(b"ann", b"1", {"type": b"e" * 129}, "bad_event", id="long-event"),
        pytest.param(
            b"ann", b"1", {"type": b"\xff"}, "bad_event", id="event-not-utf-8"
        ),
    ],
)
async def test_bad_input_is_dead_lettered_unchanged_with_its_reason(
    broker: LocalNode,
    namespace: str,
    worker: Worker,
    user: bytes,
    body: bytes,
    properties: dict[str, bytes],
    reason: str,
) -> None:
    """A bad message neither stops nor delays the messages around it."""
    sent = Properties(
        **properties, app_id=b"\xff\x00app", headers=render_table({"mine": b"\xfe"})
    )
    settings = settings_for(broker, namespace, max_message_bytes="4KiB")
    if body.startswith(b"["):
        settings = settings_for(broker, namespace)
    async with (
        running_bridge(settings) as running,
        open_windows(running.listening.public_url, [running.token("ann")]) as (ann,),
        open_raw(broker.url) as producer,
    ):
        await worker.publish("ann", "before")
        await producer.publish(
            BrokerNames(namespace).messages,
            user,
            body=body,
            raw_properties=render_properties(sent),
        )
        await worker.publish("ann", "after")
        await eventually(lambda: len(ann.data()) == 2)
        (letter,) = await dead_letters(broker, namespace, 1)

        assert ann.data() == ["before", "after"]
        assert letter.body == body
        assert letter.properties.app_id == sent.app_id
        assert letter.properties.type == sent.type
        table = letter.properties.headers
        assert header_bytes(table, "mine") == b"\xfe"
        assert header_bytes(table, Header.REASON) == reason.encode()
        assert header_bytes(table, Header.ROUTING_KEY) == user
        assert header_int(table, Header.ATTEMPT) == 1
        assert (header_int(table, Header.TIME) or 0) > 1_700_000_000
        assert header_bytes(table, Header.ERROR)
        origin = header_bytes(table, Header.ORIGIN_QUEUE)
        assert origin == BrokerNames(namespace).inbound_queue().encode()


async def test_a_dead_letter_does_not_expire(
    broker: LocalNode, namespace: str, worker: Worker
) -> None:
    """Its `expiration` moves to a header, because the broker would drop the dead letter."""
    async with running_bridge(settings_for(broker, namespace)):
        await worker.publish("ann", body=b"{", properties=Properties(expiration=b"500"))
        (letter,) = await dead_letters(broker, namespace, 1)

    assert letter.properties.expiration is None
    assert header_bytes(letter.properties.headers, Header.EXPIRATION) == b"500"


async def test_headers_that_fill_a_frame_do_not_prevent_a_dead_letter(
    broker: LocalNode, namespace: str, worker: Worker
) -> None:
    """With the added headers they exceed a frame, and the broker would close the connection."""
    huge = Properties(headers=render_table({"huge": b"x" * 130_900}))
    async with running_bridge(settings_for(broker, namespace)) as running:
        await worker.publish("ann", body=b"{", properties=huge)
        (letter,) = await dead_letters(broker, namespace, 1)
        lost = running.sample("bridge_broker_reconnects_total", purpose="publish")

    assert header_int(letter.properties.headers, Header.HEADERS_DROPPED)
    assert header_bytes(letter.properties.headers, Header.REASON) == b"malformed_body"
    assert lost == 0


async def test_expired_messages_are_not_delivered_but_counted(
    broker: LocalNode, namespace: str, worker: Worker
) -> None:
    """A window that connects too late is notified of the gap."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        await worker.publish("ann", "late", properties=Properties(expiration=b"2000"))
        expired_s = time.monotonic() + 2.1
        await worker.publish("ann", "good")
        await eventually(lambda: running.settled("stored") == 2)
        await eventually(lambda: time.monotonic() > expired_s)
        url = running.listening.public_url
        async with open_windows(url, [running.token("ann")]) as (ann,):
            assert ann.data() == ["good"]
            assert ann.data("bridge:sync") == [
                {"replayed": 1, "complete": False, "missed": 1, "reason": "expired"}
            ]
        assert running.sample("bridge_left_out_total") == 1


async def test_a_message_that_cannot_be_stored_is_retried_and_dead_lettered(
    broker: LocalNode,
    namespace: str,
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bug that affects one message costs only that message."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_windows(running.listening.public_url, [running.token("ann")]) as (ann,),
    ):
        append = running.bridge.components.inbox.append

        async def refuse_poison(messages: Sequence[Message]) -> list[int | None]:
            if any(message.data == b'"poison"' for message in messages):
                text = "poison"
                raise ZeroDivisionError(text)
            return await append(messages)

        monkeypatch.setattr(running.bridge.components.inbox, "append", refuse_poison)
        for data in ("one", "poison", "two"):
            await worker.publish("ann", data)
        (letter,) = await dead_letters(broker, namespace, 1)
        await eventually(lambda: len(ann.data()) == 2)

        assert ann.data() == ["one", "two"]
        table = letter.properties.headers
        assert header_bytes(table, Header.REASON) == b"attempts_exhausted"
        assert header_int(table, Header.ATTEMPT) == 3
        assert (
            header_bytes(table, Header.ERROR) == b"attempt 3: ZeroDivisionError: poison"
        )


async def test_the_same_message_id_is_stored_once_within_the_window(
    broker: LocalNode, namespace: str, worker: Worker
) -> None:
    """A worker that received no confirm can publish again."""
    once = Properties(message_id=b"order-1")
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_windows(running.listening.public_url, [running.token("ann")]) as (ann,),
    ):
        for data in ("one", "two"):
            await worker.publish("ann", data, properties=once)
        await worker.publish("ann", "three")
        await eventually(lambda: len(ann.data()) == 2)

        assert ann.data() == ["one", "three"]


async def test_text_plain_arrives_as_a_string(
    broker: LocalNode, namespace: str, worker: Worker
) -> None:
    """A producer needs no JSON."""
    text = Properties(content_type=b"text/plain; charset=utf-8")
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_windows(running.listening.public_url, [running.token("ann")]) as (ann,),
    ):
        await worker.publish("ann", body='he said "hé"'.encode(), properties=text)
        await eventually(ann.data)

        assert ann.data() == ['he said "hé"']


# --- schemas of events --------------------------------------------------------------


async def test_data_that_breaks_its_schema_is_dead_lettered(
    broker: LocalNode, namespace: str, worker: Worker, tmp_path: Path
) -> None:
    """The dead letter names place and rule. A reload replaces all schemas or none."""
    file = tmp_path / "message.json"
    file.write_text('{"properties": {"n": {"type": "integer"}}}')
    settings = settings_for(broker, namespace, schemas=str(tmp_path))
    async with running_bridge(settings) as running:
        token = running.token("ann")
        async with open_windows(running.listening.public_url, [token]) as (ann,):
            for data in ({"n": 1}, {"n": "private"}, {"n": 3}):
                await worker.publish("ann", data)
            await eventually(lambda: len(ann.data()) == 2)
            assert ann.data() == [{"n": 1}, {"n": 3}]
            (letter,) = await dead_letters(broker, namespace, 1)
            headers = letter.properties.headers
            assert header_bytes(headers, Header.REASON) == b"schema"
            assert header_bytes(headers, Header.ERROR) == (
                b"data breaks message.json#/properties/n/type at /n: "
                b'the value is not of type "integer"'
            )
            assert letter.body == b'{"n":"private"}'

            file.write_text("{")
            await running.bridge.reload(running.settings)
            status, problem, _ = await post(
                running, b'{"user": "ann", "data": {"n": "4"}}'
            )
            assert (status, problem["pointer"]) == (422, "/data/n")

            file.write_text("true")
            await running.bridge.reload(running.settings)
            await worker.publish("ann", {"n": "5"})
            await eventually(lambda: {"n": "5"} in ann.data())


async def test_a_reload_that_fails_does_not_end_the_bridge(
    broker: LocalNode, namespace: str
) -> None:
    """A bug in it would close the windows of all users, at the next start again."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        loads: list[Settings] = []

        def load() -> Settings:
            loads.append(running.settings)
            if len(loads) == 1:
                problem = "a bug"
                raise ZeroDivisionError(problem)
            return running.settings

        hangup = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            reloading = tasks.create_task(running.bridge.reload_on(hangup, load))
            hangup.set()
            await eventually(lambda: len(loads) == 1)
            hangup.set()
            await eventually(lambda: len(loads) == 2)
            reloading.cancel()


async def test_a_draining_bridge_opens_no_sessions_while_it_settles(
    broker: LocalNode, namespace: str, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new window would have to reconnect soon; existing windows get their messages."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        url = running.listening.public_url
        async with open_windows(url, [running.token("ann")]) as (window,):
            append = running.bridge.components.inbox.append
            is_released = asyncio.Event()

            async def append_late(messages: Sequence[Message]) -> list[int | None]:
                await is_released.wait()
                return await append(messages)

            monkeypatch.setattr(running.bridge.components.inbox, "append", append_late)
            await worker.publish("ann", "late")
            await eventually(lambda: running.bridge.components.intake.in_flight)

            running.stop.set()
            await eventually(running.bridge.unready_reasons)
            opening = f"{url}/socket.io/?EIO=4&transport=polling"
            async with aiohttp.ClientSession() as web, web.get(opening) as answer:
                assert answer.status == 503

            is_released.set()
            await eventually(lambda: window.data("bridge:closing"))
            assert window.data() == ["late"]
