"""Requests from pages to workers, over a real broker, with the stock clients."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from bridge.amqp.requests import RequestClient
from bridge.core.broker_names import BrokerNames
from tests.conftest import eventually
from tests.integration.events import refuse_all
from tests.integration.requests.conftest import (
    EVENT,
    ask,
    connected_page,
    request_settings,
    request_worker,
    requesting_bridge,
)
from tests.integration.running import (
    RunningBridge,
    python_client,
    running_bridge,
    settings_for,
)
from tests.integration.sockets.js_pages import Pages
from tests.local_node import LocalNode


def outcomes(running: RunningBridge, outcome: str) -> float:
    return running.sample("bridge_requests_total", outcome=outcome)


def has_ended(
    client: RequestClient, answers: Callable[[], list[list[Any]]], number: int
) -> bool:
    """Return whether there are `number` answers, or requests cannot be sent now."""
    return client.problem is not None or len(answers()) == number


async def test_a_worker_receives_a_request_and_the_page_its_reply(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """The contract, part by part: no library of bridge is needed on either side."""
    settings = request_settings(broker, namespace, request_timeout="60s")
    async with (
        requesting_bridge(settings) as running,
        request_worker(
            broker, namespace, answer=lambda job: {"canceled": job["id"]}
        ) as worker,
    ):
        await connected_page(pages, running, user="änn")
        answer = await ask(pages, {"id": 17, "text": "\ud83d half an emoji"})
        window = pages.all("page", "connect")[0][0]["id"]

        assert answer == {"ok": True, "data": {"canceled": 17}}
        (request,) = worker.requests
        assert json.loads(request.body)["id"] == 17
        assert (request.exchange, request.routing_key) == (
            f"{namespace}.requests",
            EVENT,
        )
        assert request.headers == {"x-bridge-user": "änn", "x-bridge-window": window}
        assert request.message_id == request.correlation_id
        assert request.content_type == "application/json"
        assert request.delivery_mode == 2
        assert request.expiration == 60
        assert outcomes(running, "answered") == 1
        assert running.sample("bridge_request_seconds_count") == 1


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_the_python_client_receives_the_reply(
    broker: LocalNode, namespace: str, transport: str
) -> None:
    """`call` is its way to wait for an answer; no data is `null`."""
    async with (
        requesting_bridge(request_settings(broker, namespace)) as running,
        request_worker(broker, namespace, answer=lambda data: [data]),
        python_client() as client,
    ):
        await client.connect(
            running.listening.public_url,
            auth={"token": running.token("ann")},
            transports=[transport],
        )

        assert await client.call(EVENT) == {"ok": True, "data": [None]}
        assert await client.call(EVENT, "x") == {"ok": True, "data": ["x"]}


async def test_an_error_of_a_worker_reaches_the_page(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """Its code is in the data, because the codes of bridge are a closed list."""
    settings = request_settings(broker, namespace, max_message_bytes="1KiB")
    replies: list[tuple[bytes, dict[str, Any], dict[str, Any]]] = [
        (
            b'{"code": "gone", "message": "the job has ended"}',
            {"type": "error"},
            {
                "data": {"code": "gone", "message": "the job has ended"},
                "message": "the job has ended",
            },
        ),
        (
            b"no",
            {"type": "error", "content_type": "text/plain"},
            {"data": "no", "message": "no"},
        ),
        (
            b"",
            {"type": "error"},
            {"data": None, "message": "the worker reported an error"},
        ),
        (
            b"{not JSON",
            {},
            {
                "message": "the worker's reply cannot be read: body of 9 bytes is not "
                "JSON: unexpected character at 1"
            },
        ),
        (
            b'"%b"' % (b"x" * 1024),
            {},
            {"message": "the worker's reply is larger than BRIDGE_MAX_MESSAGE_BYTES"},
        ),
    ]
    async with (
        requesting_bridge(settings) as running,
        request_worker(broker, namespace) as worker,
    ):
        await connected_page(pages, running)
        for number, (body, properties, expected) in enumerate(replies, 1):
            asking = asyncio.create_task(ask(pages, number))
            await eventually(lambda number=number: len(worker.requests) == number)  # type: ignore[misc] # mypy does not see through the default
            await worker.reply(worker.requests[-1], body, **properties)
            answer = await asking
            if "cannot be read" in answer["message"]:
                answer["message"] = expected["message"]  # it is the library's text
            assert answer == {"ok": False, "code": "refused", **expected}

        assert outcomes(running, "refused") == len(replies)


async def test_a_request_without_a_reply_ends_at_its_timeout_and_a_late_reply_is_dropped(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """The page has its answer by then: it must not get a second one."""
    settings = request_settings(broker, namespace, request_timeout="300ms")
    async with (
        requesting_bridge(settings) as running,
        request_worker(broker, namespace) as worker,
    ):
        await connected_page(pages, running)
        answer = await ask(pages, 1)
        await eventually(lambda: worker.requests)
        await worker.reply(worker.requests[0], b"1")
        late = "bridge_request_late_replies_total"
        await eventually(lambda: running.sample(late) == 1)

        assert (answer["ok"], answer["code"]) == (False, "timeout")
        assert "BRIDGE_REQUEST_TIMEOUT" in answer["message"]
        assert len(pages.all("page", "answer")) == 1


async def test_a_request_that_no_queue_receives_is_answered_at_once(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """A page must not wait for a worker that is not installed."""
    settings = request_settings(broker, namespace, request_timeout="600s")
    async with requesting_bridge(settings) as running:
        await connected_page(pages, running)
        answer = await ask(pages, 1)

        assert (answer["ok"], answer["code"]) == (False, "unroutable")
        assert outcomes(running, "unroutable") == 1


async def test_a_request_that_a_full_queue_refuses_is_answered_at_once(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """The broker sends a nack and no return then."""
    settings = request_settings(broker, namespace, request_timeout="600s")
    async with (
        requesting_bridge(settings) as running,
        await aio_pika.connect(broker.url) as connection,
    ):
        channel = await connection.channel()
        await refuse_all(channel, f"{namespace}.requests")
        await connected_page(pages, running)
        answer = await ask(pages, 1)

    assert (answer["ok"], answer["code"]) == (False, "not_available")


async def test_a_request_without_a_callback_asks_for_no_reply(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """A worker sees that by the absence of `reply_to`."""
    async with (
        requesting_bridge(request_settings(broker, namespace)) as running,
        request_worker(broker, namespace) as worker,
    ):
        await connected_page(pages, running)
        pages.command("send", "page", EVENT, {"seen": 1})
        await eventually(lambda: outcomes(running, "sent") == 1)
        await eventually(lambda: worker.requests)

    assert worker.requests[0].reply_to is None
    assert worker.requests[0].body == b'{"seen":1}'


async def test_an_event_that_is_not_listed_is_refused(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """Also one that a worker listens to."""
    async with (
        requesting_bridge(request_settings(broker, namespace)) as running,
        request_worker(broker, namespace, event="#") as worker,
    ):
        await connected_page(pages, running)
        other = await ask(pages, 1, event="job.delete")
        prefix = await ask(pages, 1, event=f"{EVENT}.all")
        pages.command("ask", "page", EVENT, 1, 2)
        two = (await pages.until("page", "answer", EVENT))[0]

    assert other == prefix
    assert (other["ok"], other["code"]) == (False, "refused")
    assert other["message"] == "the event is not in BRIDGE_PAGE_EVENTS"
    assert (two["code"], two["message"]) == ("refused", "a request has one argument")
    assert worker.requests == []


async def test_without_page_events_everything_stays_closed(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """The default: no exchange, no connection, and no answer to unknown events."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        await aio_pika.connect(broker.url) as connection,
    ):
        await connected_page(pages, running)
        pages.command("ask", "page", EVENT, 1)
        await eventually(lambda: running.sample("bridge_events_ignored_total") == 1)

        assert pages.all("page", "answer") == []
        channel = await connection.channel()
        with pytest.raises(ChannelNotFoundEntity):
            await channel.get_exchange(BrokerNames(namespace).requests)


async def test_data_that_the_schema_refuses_never_reaches_a_worker(
    broker: LocalNode, namespace: str, pages: Pages, tmp_path: Path
) -> None:
    """The schema of a request is not that of the message with the same name."""
    (tmp_path / "page").mkdir()
    file = tmp_path / "page" / f"{EVENT}.json"
    file.write_text('{"properties": {"id": {"type": "integer"}}, "required": ["id"]}')
    (tmp_path / f"{EVENT}.json").write_text("false")
    settings = request_settings(broker, namespace, schemas=str(tmp_path))
    async with (
        requesting_bridge(settings) as running,
        request_worker(broker, namespace, answer=lambda job: job["id"]) as worker,
    ):
        await connected_page(pages, running)
        wrong = await ask(pages, {"id": "17"})
        right = await ask(pages, {"id": 17})
        file.write_text("false")
        await running.bridge.reload(settings)
        reloaded = await ask(pages, {"id": 17})

    assert (wrong["ok"], wrong["code"]) == (False, "refused")
    assert wrong["message"].startswith(f"data breaks page/{EVENT}.json#/properties/id")
    assert right == {"ok": True, "data": 17}
    assert reloaded["code"] == "refused"
    assert len(worker.requests) == 1


async def test_a_window_has_a_limited_number_of_requests_in_flight(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """Another window of the user has its own limit, and a reply makes room."""
    settings = request_settings(
        broker, namespace, max_requests_per_window=2, request_timeout="60s"
    )
    async with (
        requesting_bridge(settings) as running,
        request_worker(broker, namespace) as worker,
    ):
        for name in ("page", "other"):
            await connected_page(pages, running, name=name)
        for number in range(3):
            pages.command("ask", "page", EVENT, number)
        refused = (await pages.until("page", "answer"))[1]
        pages.command("ask", "other", EVENT, 3)
        await eventually(lambda: len(worker.requests) == 3)
        for request in worker.requests:
            await worker.reply(request, b"1")
        await pages.until("page", "answer", count=3)
        pages.command("ask", "page", EVENT, 4)
        await eventually(lambda: len(worker.requests) == 4)

    assert (refused["ok"], refused["code"]) == (False, "flooding")


async def test_a_user_has_a_limited_number_of_requests_in_flight(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """A page that connects again and again could fill bridge, and the queue of a worker."""
    settings = request_settings(
        broker,
        namespace,
        max_requests_per_window=1,
        max_windows_per_user=2,
        request_timeout="60s",
    )
    async with (
        requesting_bridge(settings) as running,
        request_worker(broker, namespace) as worker,
    ):
        for number in range(2):
            await connected_page(pages, running, name=f"page-{number}")
            pages.command("ask", f"page-{number}", EVENT, number)
            await eventually(lambda number=number: len(worker.requests) > number)  # type: ignore[misc] # mypy does not see through the default
            pages.command("close", f"page-{number}")
            await eventually(lambda: running.sample("bridge_windows") == 0)
        assert running.sample("bridge_requests_in_flight") == 2
        await connected_page(pages, running)
        await connected_page(pages, running, user="bob", name="bob")
        refused = await ask(pages, 2)
        pages.command("ask", "bob", EVENT, 3)
        await eventually(lambda: len(worker.requests) == 3)
        await worker.reply(worker.requests[0], b"1")
        await eventually(lambda: outcomes(running, "left") == 1)
        pages.command("ask", "page", EVENT, 4)
        await eventually(lambda: len(worker.requests) == 4)

    assert (refused["ok"], refused["code"]) == (False, "flooding")


async def test_a_page_that_leaves_gets_nothing(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """Not even after it has connected again: its new connection has other packet ids."""
    async with (
        requesting_bridge(request_settings(broker, namespace)) as running,
        request_worker(broker, namespace) as worker,
    ):
        await connected_page(pages, running)
        pages.command("ask", "page", EVENT, 1)
        await eventually(lambda: worker.requests)
        pages.command("close", "page")
        await eventually(lambda: running.sample("bridge_windows") == 0)
        pages.command("connect", "page")
        await pages.until("page", "connect", count=2)
        await worker.reply(worker.requests[0], b"1")
        await eventually(lambda: outcomes(running, "left") == 1)
        again = asyncio.create_task(ask(pages, 2))
        await eventually(lambda: len(worker.requests) == 2)
        await worker.reply(worker.requests[1], b"2")

        assert await again == {"ok": True, "data": 2}
        assert outcomes(running, "answered") == 1


async def test_a_large_request_and_a_large_reply_arrive_whole(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """Both are larger than one AMQP frame (128 KiB)."""
    settings = request_settings(
        broker, namespace, max_event_bytes="1MiB", max_message_bytes="512KiB"
    )
    text = "x" * 400_000
    async with (
        requesting_bridge(settings) as running,
        request_worker(broker, namespace, answer=lambda data: data),
    ):
        await connected_page(pages, running)
        answer = await ask(pages, text)

    assert answer == {"ok": True, "data": text}


async def test_during_an_alarm_of_the_broker_pages_are_answered_at_once(
    broker: LocalNode, namespace: str, pages: Pages
) -> None:
    """It keeps no request: it would come late, after the page was told that it failed."""
    settings = request_settings(broker, namespace, request_timeout="600s")
    async with (
        requesting_bridge(settings) as running,
        request_worker(broker, namespace, answer=lambda data: data),
    ):
        await connected_page(pages, running)
        await ask(pages, 1)
        client = running.bridge.components.page_requests.client
        async with broker.memory_alarm():
            # The broker raises the alarm a little later, and blocks a connection when that
            # publishes: this request waits for the end of the alarm.
            number = 1
            while client.problem is None:
                number += 1
                pages.command("ask", "page", EVENT, number)
                answers = partial(pages.all, "page", "answer")
                await eventually(partial(has_ended, client, answers, number))
            assert "blocks publishers" in str(client.problem)
            pages.command("ask", "page", EVENT, "during")
            await eventually(lambda: outcomes(running, "not_available") == 1)
        await pages.until("page", "answer", count=number + 1, within_s=30)
        await eventually(lambda: client.problem is None)
        await ask(pages, "after")

        ended = [answer for (_, answer) in pages.all("page", "answer")]
        data = [one["data"] for one in ended if one["ok"]]
        assert data == [*range(1, number + 1), "after"]
        assert len(ended) == number + 2
