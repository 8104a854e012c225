"""Dead letters over the API: listed, filtered and paged, without changing the queue."""

import asyncio

from bridge.core.properties import (
    PERSISTENT,
    Properties,
    header_int,
    render_table,
)
from tests.conftest import eventually
from tests.integration.amqp.conftest import open_raw
from tests.integration.dead_letters import take_all
from tests.integration.operator.dead_letter_fixtures import (
    BASE_S,
    publish_dead_letters,
)
from tests.integration.operator.dead_letter_setting import DeadLetterSetup, setting
from tests.local_node import LocalNode


async def test_dead_letters_are_listed_oldest_first_with_their_reasons(
    broker: LocalNode, namespace: str
) -> None:
    """One was dead-lettered by the bridge, the other expired and RabbitMQ dead-lettered it."""
    expired = Properties(
        expiration=b"1", type=b"note", message_id=b"m-1", delivery_mode=PERSISTENT
    )
    async with setting(broker, namespace) as at:
        await at.worker.publish(
            "ann",
            body=b"no JSON",
            properties=Properties(
                headers=render_table({"x-mine": "kept"}), message_id=b"m-0"
            ),
        )
        await eventually(lambda: at.has_ready(1))
        await at.running.bridge.components.intake.stop_consuming()
        await at.running.bridge.components.intake.settled()
        await at.worker.publish("tom", {"n": 1}, properties=expired)
        await eventually(lambda: at.has_ready(2))

        page = await at.api.get("/api/dead")
        ids = [letter["id"] for letter in page["items"]]
        first = await at.api.get(f"/api/dead/{ids[0]}?body=true")
        second = await at.api.get(f"/api/dead/{ids[1]}")
        again = await at.api.get("/api/dead")

    assert (page["total"], page["scanned"], page["next"]) == (2, 2, None)
    assert [letter["reason"] for letter in page["items"]] == [
        "malformed_body",
        "expired",
    ]
    assert [letter["user"] for letter in page["items"]] == ["ann", "tom"]
    assert [letter["message_id"] for letter in page["items"]] == ["m-0", "m-1"]
    assert page["items"][0]["origin"] == f"{namespace}.messages → {namespace}.inbound.0"
    assert page["items"][0]["attempts"] == 1
    assert page["items"][1]["event"] == "note"
    assert page["items"][1]["dead_s"] > BASE_S
    assert again["items"] == page["items"]  # delivery counts do not change the ids
    assert first["body_text"] == "no JSON"
    assert first["headers"]["x-mine"] == "kept"
    assert "x-delivery-count" not in first["headers"]
    assert "not one JSON value" in first["explanation"]
    assert second["body_text"] is None
    assert second["properties"]["type"] == "note"
    assert "expired while it waited" in second["explanation"]
    assert second["headers"]["x-death"][0]["reason"] == "expired"


async def test_filters_and_pages_return_each_dead_letter_once(
    broker: LocalNode, namespace: str
) -> None:
    """Even if messages leave and arrive between two pages."""
    async with setting(broker, namespace) as at:
        await publish_dead_letters(
            broker, at.names, 100, users=("ann", "tom"),
            reasons=("crashed", "too_large", "attempts_exhausted"),
        )  # fmt: skip
        of_tom = await at.api.get("/api/dead?user=tom&limit=200")
        crashed = await at.api.get("/api/dead?reason=crashed&user=ann")
        timed = await at.api.get(
            f"/api/dead?since={BASE_S + 10}&until={BASE_S + 13}&event=message"
        )
        none = await at.api.get("/api/dead?event=other")
        seen: list[str] = []
        page = await at.api.get("/api/dead?limit=30")
        seen += [letter["id"] for letter in page["items"]]
        job = await at.run_job("discard", ids=seen[10:25], confirm=15)
        await publish_dead_letters(broker, at.names, 5, start=100)
        while page["next"]:
            page = await at.api.get(f"/api/dead?limit=30&cursor={page['next']}")
            seen += [letter["id"] for letter in page["items"]]
        left = await at.remaining()

    assert len(of_tom["items"]) == 50
    assert [letter["dead_s"] - BASE_S for letter in crashed["items"]] == list(
        range(0, 100, 6)
    )
    assert [letter["dead_s"] - BASE_S for letter in timed["items"]] == [10, 11, 12]
    assert (none["items"], none["scanned"], none["total"]) == ([], 100, 100)
    assert (job["state"], job["done"]) == ("done", 15)
    assert len(seen) == len(set(seen)) == 105
    assert left == [*range(10), *range(25, 105)]


async def test_concurrent_requests_are_serialized(
    broker: LocalNode, namespace: str
) -> None:
    """Each of several consoles sees the whole queue."""
    async with setting(broker, namespace) as at:
        await publish_dead_letters(broker, at.names, 50)
        pages = await asyncio.gather(
            *(at.api.get("/api/dead?limit=5") for _ in range(5))
        )
        left = await at.remaining()

    assert all(page == pages[0] for page in pages)
    assert left == list(range(50))


async def delivery_count(at: DeadLetterSetup, number: int = 0) -> int:
    """Consume all dead letters and return RabbitMQ's delivery count of one."""
    letters = await take_all(at.broker, at.names.dead)
    return header_int(letters[number].properties.headers, "x-delivery-count") or 0


async def test_further_pages_and_filters_are_answered_from_the_cache(
    broker: LocalNode, namespace: str
) -> None:
    """A session makes RabbitMQ read all messages that were browsed before, for seconds."""
    async with setting(broker, namespace) as at:
        await publish_dead_letters(broker, at.names, 60, users=("ann", "tom"))
        first = await at.api.get("/api/dead?limit=20")
        second = await at.api.get(f"/api/dead?limit=20&cursor={first['next']}")
        no_user = await at.api.get("/api/dead?user=nobody")
        await publish_dead_letters(broker, at.names, 3, start=60)
        again = await at.api.get("/api/dead?limit=20")
        count = await delivery_count(at)

    assert count == 1
    assert (no_user["items"], no_user["scanned"], no_user["total"]) == ([], 60, 60)
    assert again == {**first, "total": 63}
    assert [letter["dead_s"] - BASE_S for letter in second["items"]] == list(
        range(20, 40)
    )


async def test_a_filter_finds_messages_that_arrived_since_the_last_session(
    broker: LocalNode, namespace: str
) -> None:
    """The cache holds the head of the queue, not its end."""
    async with setting(broker, namespace) as at:
        await publish_dead_letters(broker, at.names, 10)
        before = await at.api.get("/api/dead?user=tom")
        await publish_dead_letters(broker, at.names, 1, users=("tom",), start=10)
        after = await at.api.get("/api/dead?user=tom")

    assert before["items"] == []
    assert [letter["user"] for letter in after["items"]] == ["tom"]


async def test_a_list_is_correct_after_another_client_took_messages(
    broker: LocalNode, namespace: str
) -> None:
    """Another bridge or RabbitMQ's management UI may do that."""
    async with setting(broker, namespace) as at:
        await publish_dead_letters(broker, at.names, 10)
        await at.api.get("/api/dead")
        async with open_raw(broker.url) as raw:
            for _ in range(4):
                await raw.channel.basic_get(at.names.dead, no_ack=True)
        page = await at.api.get("/api/dead")

    assert [letter["dead_s"] - BASE_S for letter in page["items"]] == list(range(4, 10))
