"""Workers learn what happened to a message, on one bridge with each store."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from yarl import URL

from bridge.doctor.listeners import check_running_bridge
from bridge.doctor.results import CheckStatus
from bridge.settings.model import Settings
from tests.conftest import eventually
from tests.integration.events import consume_events, consume_replies, refuse_all
from tests.integration.operator.api_client import asking
from tests.integration.programs import command, settings_for_program, start
from tests.integration.running import (
    open_windows,
    running_bridge,
    settings_for,
)
from tests.integration.test_broker_alarm import health
from tests.local_node import LocalNode


@dataclass
class ReceiptWorker:
    """Publishes messages and records the events and replies about them."""

    namespace: str
    channel: AbstractChannel
    events: list[AbstractIncomingMessage] = field(default_factory=list)
    replies: list[AbstractIncomingMessage] = field(default_factory=list)
    reply_to: str = ""

    async def publish(
        self, data: object, *, body: bytes | None = None, **properties: Any
    ) -> None:
        """Publish a message for ann that asks for a receipt."""
        headers = {"x-bridge-receipt": True, **properties.pop("headers", {})}
        message = aio_pika.Message(
            json.dumps(data).encode() if body is None else body,
            headers=headers,
            delivery_mode=2,
            **properties,
        )
        exchange = await self.channel.get_exchange(
            f"{self.namespace}.messages", ensure=False
        )
        await exchange.publish(message, "ann")

    @property
    def outcomes(self) -> list[tuple[str | None, str]]:
        """The message id and outcome of each event, in order, without repeats."""
        found: dict[str | None, tuple[str | None, str]] = {}
        for event in self.events:
            body = json.loads(event.body)
            assert event.routing_key == f"message.{body['outcome']}"
            found.setdefault(event.message_id, (body["message_id"], body["outcome"]))
        return list(found.values())


@asynccontextmanager
async def receipt_worker(
    broker: LocalNode, namespace: str
) -> AsyncIterator[ReceiptWorker]:
    """Connect a worker that receives all events from now on."""
    async with await aio_pika.connect(broker.url) as connection:
        found = ReceiptWorker(namespace, await connection.channel())
        await consume_events(found.channel, namespace, found.events.append)
        found.reply_to = await consume_replies(found.channel, found.replies.append)
        yield found


@pytest.fixture
def settings(broker: LocalNode, namespace: str, inbox_url: str) -> Settings:
    """Settings with each store; an inbox keeps two messages."""
    return settings_for(broker, namespace, inbox=inbox_url, inbox_max_messages=2)


async def test_a_delivered_message_is_reported_with_a_reply(
    broker: LocalNode, namespace: str, settings: Settings
) -> None:
    """The page is asked for a sign of life at once, so it takes no regular ping."""
    async with (
        running_bridge(settings) as running,
        receipt_worker(broker, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]) as [window],
    ):
        await worker.publish(
            1, message_id="m1", reply_to=worker.reply_to, correlation_id="c1"
        )
        await eventually(lambda: worker.outcomes == [("m1", "delivered")])
        await eventually(lambda: len(worker.replies) == 1)

        assert window.data() == [1]
        [reply], [event] = worker.replies, worker.events
        assert (reply.correlation_id, reply.message_id) == ("c1", event.message_id)
        assert reply.body == event.body
        body = json.loads(event.body)
        assert (body["user"], body["event"]) == ("ann", "message")
        assert body["delay_ms"] >= 0
        async with asking(running) as api:

            async def is_traced() -> bool:
                story = (await api.get("/api/trace/m1"))["story"]
                steps = [one["text"] for one in story if one["stage"] == "reported"]
                return len(steps) == 1 and "message.delivered" in steps[0]

            await eventually(is_traced)


async def test_each_message_that_is_not_delivered_has_its_outcome(
    broker: LocalNode, namespace: str, settings: Settings
) -> None:
    """No window is open: expired, over the limit, replaced, and not valid."""
    async with (
        running_bridge(settings),
        receipt_worker(broker, namespace) as worker,
    ):
        await worker.publish(1, message_id="expired", expiration=0.3)
        await eventually(lambda: worker.outcomes == [("expired", "expired")])
        await worker.publish(None, body=b"{", message_id="dead")
        await eventually(lambda: ("dead", "dead") in worker.outcomes)
        reasons = [json.loads(event.body).get("reason") for event in worker.events]
        assert reasons == [None, "malformed_body"]
        keyed = {"x-bridge-key": "k"}
        await worker.publish(1, message_id="replaced", headers=keyed)
        await worker.publish(2, message_id="trimmed", headers=keyed)
        await eventually(lambda: ("replaced", "replaced") in worker.outcomes)
        for number in (3, 4):
            await worker.publish(number, message_id=f"kept-{number}")
        await eventually(lambda: ("trimmed", "trimmed") in worker.outcomes)
        assert len(worker.outcomes) == 4


async def test_a_duplicate_gets_the_outcome_of_the_first(
    broker: LocalNode, namespace: str, settings: Settings
) -> None:
    """A producer that did not see the confirm publishes again, and must learn it, too."""
    async with (
        running_bridge(settings) as running,
        receipt_worker(broker, namespace) as worker,
    ):
        await worker.publish(1, message_id="m1")
        await worker.publish(1, message_id="m1", reply_to=worker.reply_to)
        await eventually(lambda: running.settled("duplicate") == 1)
        async with open_windows(
            running.listening.public_url, [running.token("ann")]
        ) as [window]:
            await eventually(lambda: len(worker.replies) == 1)
            await worker.publish(1, message_id="m1", reply_to=worker.reply_to)
            await eventually(lambda: len(worker.replies) == 2)

            assert window.data() == [1]
            assert worker.outcomes == [("m1", "delivered")]
            assert len({reply.message_id for reply in worker.replies}) == 1


@pytest.mark.parametrize("inbox_url", ["sqlite", "redis"], indirect=True)
async def test_receipts_survive_a_restart(
    broker: LocalNode, namespace: str, settings: Settings
) -> None:
    """The message is delivered by another process than the one that stored it."""
    async with running_bridge(settings), receipt_worker(broker, namespace) as worker:
        await worker.publish(1, message_id="m1")
        await worker.publish(2, message_id="m2", expiration=600)
        await asyncio.sleep(0)
    async with (
        running_bridge(settings) as running,
        receipt_worker(broker, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]),
    ):
        await eventually(lambda: len(worker.outcomes) == 2)
        assert worker.outcomes == [("m1", "delivered"), ("m2", "delivered")]


async def test_a_bridge_that_cannot_publish_events_delivers_and_says_why(
    broker: LocalNode, namespace: str, settings: Settings
) -> None:
    """An operator sees the cause; when it is gone, everything follows by itself."""
    settings = settings.model_copy(update={"events_max_waiting": 2})
    async with (
        running_bridge(settings) as running,
        receipt_worker(broker, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]) as [window],
        asking(running) as api,
    ):
        full = await refuse_all(worker.channel, f"{namespace}.events")
        await worker.publish(1, message_id="m1")
        await worker.publish(2, message_id="m2")
        await eventually(lambda: window.data() == [1, 2])

        async def is_reported() -> bool:
            [row] = [
                each
                for each in (await api.get("/api/queues"))["items"]
                if each["role"] == "events"
            ]
            return bool(row["depth"] == 2 and row["problem"] and row["oldest_s"] >= 0)

        await eventually(is_reported)
        story = (await api.get("/api/trace/m1"))["story"]
        waits = "message.delivered waits to be published for workers"
        assert waits in [step["text"] for step in story]
        answer = await health(running)
        assert answer["ready"] is True
        assert "2 events for workers wait to be published" in str(answer["warnings"])
        port = URL(running.listening.operator_url).port
        here = settings.model_copy(update={"operator_port": port})
        [checked, *_] = await check_running_bridge(here)
        assert checked.status is CheckStatus.WARN
        assert "is ready; 2 events for workers wait" in checked.text

        # As many as may wait: now a message that makes more waits in RabbitMQ.
        await worker.publish(3, message_id="m3")
        await eventually(
            lambda: "BRIDGE_EVENTS_MAX_WAITING" in str(running.bridge.unready_reasons())
        )
        await full.delete()
        await eventually(lambda: window.data() == [1, 2, 3], within_s=60)
        await eventually(lambda: len(worker.outcomes) == 3, within_s=60)
        await eventually(lambda: not running.bridge.unready_reasons())
        assert {outcome for _, outcome in worker.outcomes} == {"delivered"}

        async def is_noted() -> bool:
            story = (await api.get("/api/trace/m1"))["story"]
            texts = [step["text"] for step in story]
            return "reported to workers: message.delivered" in texts

        await eventually(is_noted)


async def test_http_accepts_a_wish_for_a_receipt(
    broker: LocalNode, namespace: str
) -> None:
    """For producers without an AMQP client."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        receipt_worker(broker, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]),
        asking(running) as api,
    ):
        body = {"user": "ann", "data": 1, "id": "m1", "receipt": True}
        assert (await api.ask("POST", "/api/publish", body)).status == 202
        await eventually(lambda: worker.outcomes == [("m1", "delivered")])
        refused = await api.ask("POST", "/api/publish", body | {"ephemeral": True})
        assert refused.status == 422
        wrong = await api.ask("POST", "/api/publish", body | {"receipt": "yes"})
        assert wrong.status == 400


async def test_messages_count_as_undelivered_by_http_by_command_and_by_their_event(
    broker: LocalNode, namespace: str
) -> None:
    """Three ways to ask for it; a rule of the settings can be changed at run time."""
    settings = settings_for(broker, namespace, undelivered_after="invoice=100ms")
    publish = ("publish", "ann", "1", "--undelivered-after", "100ms", "--id", "command")
    async with (
        running_bridge(settings) as running,
        receipt_worker(broker, namespace) as worker,
        asking(running) as api,
    ):

        async def send(event: str, **fields: str) -> None:
            body = {"user": "ann", "data": 1, "event": event, **fields}
            assert (await api.ask("POST", "/api/publish", body)).status == 202

        await send("invoice", id="by rule")
        await send("invoice", id="own time", undelivered_after="1h")
        await send("order", id="by http", undelivered_after="100ms")
        await send("order", id="no time")
        values = settings_for_program(broker, namespace)
        assert (await command(*publish, **values)).code == 0
        await eventually(lambda: len(worker.outcomes) == 3)

        new = {"undelivered_after": {"order": 0.1}}
        await running.bridge.reload(settings.model_copy(update=new))
        await send("invoice", id="no rule")
        await send("order", id="new rule")
        await eventually(lambda: len(worker.outcomes) == 4)
        late = await api.get("/api/trace/own time")

    names = {"by rule", "by http", "command", "new rule"}
    assert set(worker.outcomes) == {(name, "undelivered") for name in names}
    assert "tracked" in {step["stage"] for step in late["story"]}


async def test_publish_waits_for_the_outcome_and_prints_it(
    broker: LocalNode, namespace: str
) -> None:
    """A script can act on it: 0 delivered, 1 without an outcome in time."""
    settings = settings_for_program(broker, namespace)
    async with running_bridge(settings_for(broker, namespace)) as running:
        late = await command("publish", "ann", "1", "--wait", "200ms", **settings)
        assert (late.code, late.out) == (1, "")
        assert "bridge trace" in late.err

        url, tokens = running.listening.public_url, [running.token("ann")]
        async with open_windows(url, tokens) as [window]:
            done = await command("publish", "ann", "2", "--wait", "30s", **settings)
            assert (done.code, done.out) == (0, "delivered\n")
            assert window.data() == [1, 2]
            told = await command(
                *("publish", "ann", "3", "--wait", "30s", "--json", "--id", "m3"),
                **settings,
            )
            assert told.code == 0
            line = orjson.loads(told.out)
            assert (line["message_id"], line["outcome"]) == ("m3", "delivered")


async def test_publish_exits_with_1_for_another_outcome_and_2_for_wrong_use(
    broker: LocalNode, namespace: str
) -> None:
    """The wait is for one message."""
    settings = settings_for_program(broker, namespace)
    async with running_bridge(settings_for(broker, namespace)):
        expired = await command(
            *("publish", "ann", "4", "--wait", "30s", "--ttl", "100ms"), **settings
        )
        assert (expired.code, expired.out) == (1, "expired\n")
        lines = await command("publish", "ann", "-", "--wait", "1s", **settings)
        assert lines.code == 2
        wrong = await command("publish", "ann", "1", "--wait", "soon", **settings)
        assert (wrong.code, "--wait" in wrong.err) == (2, True)


async def test_publish_ends_its_wait_at_ctrl_c_and_without_a_broker(
    broker: LocalNode, namespace: str
) -> None:
    """The message stays in its queue."""
    settings = settings_for_program(broker, namespace)
    async with running_bridge(settings_for(broker, namespace)):
        pass  # it declares the queue
    waiting = await start(
        *("publish", "ann", "5", "--wait", "1h", "--id", "m5"), **settings
    )
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()

        async def is_published() -> bool:
            name = f"{namespace}.inbound.0"
            queue = await channel.declare_queue(name, passive=True)
            return bool(queue.declaration_result.message_count)

        await eventually(is_published)
    waiting.send_signal(signal.SIGINT)
    out, err = await waiting.communicate()
    assert (waiting.returncode, out) == (130, b"")
    assert b"`bridge trace m5`" in err
    assert b"Traceback" not in err

    away = settings | {"amqp_url": "amqp://127.0.0.1:1/"}
    gone = await command("publish", "ann", "1", "--wait", "1s", **away)
    assert gone.code == 3
