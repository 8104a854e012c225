"""Dead letters over the API: redriven and discarded, without changing any other message."""

from collections.abc import AsyncIterator

import pytest

from bridge.amqp.dead_letters.batches import PendingDeadLetter
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import (
    PERSISTENT,
    Properties,
    render_properties,
    render_table,
)
from bridge.enums import Header
from tests.conftest import eventually
from tests.integration.amqp.conftest import open_raw
from tests.integration.dead_letters import take_all
from tests.integration.operator.dead_letter_fixtures import publish_dead_letters
from tests.integration.operator.dead_letter_setting import DeadLetterSetup, setting
from tests.integration.running import open_windows
from tests.local_node import LocalNode


async def test_a_redrive_reaches_only_the_user(
    broker: LocalNode, namespace: str
) -> None:
    """It is published to the inbound exchange: other consumers do not receive it again."""
    async with (
        setting(broker, namespace) as at,
        open_windows(
            at.running.listening.public_url, [at.running.token("ann")]
        ) as windows,
    ):
        await publish_dead_letters(broker, at.names, 20)
        dry = await at.api.ask(
            "POST", "/api/dead/redrive", {"all": True, "dry_run": True}
        )
        job = await at.run_job("redrive", all=True, rate_per_s=1000)
        await eventually(lambda: len(windows[0].data()) == 20)
        after = await at.api.get("/api/dead")
        overview = await at.api.get("/api/overview")

    assert (dry.status, dry.body) == (200, {"would": 20})
    assert (job["state"], job["done"], job["total"], job["failed"]) == (
        "done",
        20,
        20,
        0,
    )
    assert windows[0].data() == list(range(20))  # in their order
    assert (after["items"], after["total"]) == ([], 0)
    assert overview["totals"]["consumed"] == 20


async def test_dead_letters_that_return_are_counted_and_not_redriven_again(
    broker: LocalNode, namespace: str
) -> None:
    """Their cause still exists: the job ends, and their number of redrives has grown."""
    async with setting(broker, namespace) as at:
        for _ in range(3):
            await at.worker.publish("ann", body=b"no JSON")
        await eventually(lambda: at.has_ready(3))
        for redrives in (1, 2):
            job = await at.run_job(
                "redrive", filter={"reason": "malformed_body"}, rate_per_s=1000
            )
            assert (job["state"], job["done"]) == ("done", 3)

            async def have_returned(redrives: int = redrives) -> bool:
                letters = (await at.api.get("/api/dead"))["items"]
                return [letter["redrives"] for letter in letters] == [redrives] * 3

            await eventually(have_returned)


async def test_a_redrive_restarts_the_time_to_live(
    broker: LocalNode, namespace: str
) -> None:
    """The original time to live applies again from the redrive on."""
    properties = Properties(expiration=b"100", delivery_mode=PERSISTENT)
    async with setting(broker, namespace) as at:
        await at.running.bridge.components.intake.stop_consuming()
        await at.running.bridge.components.intake.settled()
        await at.worker.publish("ann", "late", properties=properties)
        await eventually(lambda: at.has_ready(1))
        await at.run_job("redrive", all=True)

        async def has_expired_again() -> bool:
            letters = (await at.api.get("/api/dead"))["items"]
            found = [(letter["reason"], letter["redrives"]) for letter in letters]
            return found == [("expired", 1)]

        await eventually(has_expired_again)  # there is no consumer


async def test_the_inbox_recognizes_a_repeated_redrive(
    broker: LocalNode, namespace: str
) -> None:
    """After kill -9 between confirm and ack the message is published again, and stored once."""
    async with (
        setting(broker, namespace) as at,
        open_windows(
            at.running.listening.public_url, [at.running.token("ann")]
        ) as windows,
    ):
        await publish_dead_letters(broker, at.names, 3)
        dead_letters = at.running.bridge.components.dead_letters
        for item in (await at.api.get("/api/dead"))["items"]:
            found = await dead_letters.find(item["id"])
            assert found is not None
            # Confirmed; the process dies before the ack.
            await dead_letters._publish(PendingDeadLetter(found[0].id, found[1]))
        await at.run_job("redrive", all=True, rate_per_s=1000)
        await eventually(lambda: at.running.settled("duplicate") == 3)

    assert windows[0].data() == [0, 1, 2]


async def test_dead_letters_with_one_forged_id_all_arrive(
    broker: LocalNode, namespace: str
) -> None:
    """Any producer can publish to the exchange of dead letters, with any headers."""
    headers = render_table({Header.DEAD_LETTER_ID: "forged"})
    forged = render_properties(Properties(headers=headers))
    async with (
        setting(broker, namespace) as at,
        open_windows(
            at.running.listening.public_url, [at.running.token("ann")]
        ) as windows,
    ):
        async with open_raw(broker.url) as raw:
            for body in (b"1", b"2", b"2"):
                await raw.publish(at.names.dead, body=body, raw_properties=forged)
        await eventually(lambda: at.has_ready(3))
        job = await at.run_job("redrive", all=True, rate_per_s=1000)
        await eventually(lambda: len(windows[0].data()) == 3)

    assert (job["state"], job["done"], job["failed"]) == ("done", 3, 0)
    assert windows[0].data() == [1, 2, 2]


async def test_a_forged_routing_key_of_any_length_does_not_end_a_redrive(
    broker: LocalNode, namespace: str
) -> None:
    """It cannot be published, so the redrive of all others would fail, too."""
    headers = render_table({Header.ROUTING_KEY: "x" * 256})
    forged = render_properties(Properties(headers=headers))
    async with (
        setting(broker, namespace) as at,
        open_windows(
            at.running.listening.public_url, [at.running.token("ann")]
        ) as windows,
    ):
        honest = render_properties(
            Properties(headers=render_table({Header.ROUTING_KEY: "ann"}))
        )
        async with open_raw(broker.url) as raw:
            for properties in (forged, honest):
                await raw.publish(at.names.dead, body=b"1", raw_properties=properties)
        await eventually(lambda: at.has_ready(2))
        job = await at.run_job("redrive", all=True, rate_per_s=1000)
        await eventually(windows[0].data)

    assert job["state"] == "done"


async def test_a_message_that_cannot_be_redriven_stays_in_the_queue(
    broker: LocalNode, namespace: str
) -> None:
    """A routing key that is not UTF-8 could only reach another user."""
    async with setting(broker, namespace) as at:
        await at.worker.publish("ann", body=b"no JSON")
        async with open_raw(broker.url) as raw:
            await raw.publish(at.names.messages, b"\xff\xfe")
        await eventually(lambda: at.has_ready(2))
        await at.running.bridge.components.intake.stop_consuming()
        await at.running.bridge.components.intake.settled()
        job = await at.run_job("redrive", all=True)
        page = await at.api.get("/api/dead")

    assert (job["state"], job["done"], job["failed"]) == ("done", 1, 1)
    assert "not UTF-8" in job["error"]
    assert [letter["reason"] for letter in page["items"]] == ["bad_user"]


async def test_a_discard_needs_the_count_and_removes_only_the_selection(
    broker: LocalNode, namespace: str
) -> None:
    """A filter that selects too much must not empty the queue."""
    async with setting(broker, namespace) as at:
        await publish_dead_letters(broker, at.names, 30, users=("ann", "tom", "eve"))
        selection = {"filter": {"user": "tom"}}
        dry_run = await at.api.ask(
            "POST", "/api/dead/discard", {**selection, "dry_run": True}
        )
        unconfirmed = await at.api.ask("POST", "/api/dead/discard", selection)
        wrong = await at.api.ask(
            "POST", "/api/dead/discard", {**selection, "confirm": 9}
        )
        job = await at.run_job("discard", **selection, confirm=dry_run.body["would"])
        left = await at.remaining()

    assert dry_run.body == {"would": 10}
    assert (unconfirmed.status, wrong.status) == (409, 409)
    assert "10 dead letters match" in wrong.body["detail"]
    assert job["done"] == 10
    assert left == [n for n in range(30) if n % 3 != 1]


async def test_identical_messages_have_distinct_ids(
    broker: LocalNode, namespace: str
) -> None:
    """Several equal messages expired in the same second: one is selected, one is removed."""
    async with setting(broker, namespace) as at:
        await at.running.bridge.components.intake.stop_consuming()
        await at.running.bridge.components.intake.settled()
        for _ in range(3):
            await at.worker.publish(
                "ann",
                1,
                properties=Properties(expiration=b"0", delivery_mode=PERSISTENT),
            )
        await eventually(lambda: at.has_ready(3))
        ids = [letter["id"] for letter in (await at.api.get("/api/dead"))["items"]]
        job = await at.run_job("discard", ids=ids[1:2], confirm=1)

    assert len(set(ids)) == 3
    assert job["done"] == 1
    assert len(await take_all(broker, BrokerNames(namespace).dead)) == 2


async def test_a_running_job_can_be_cancelled_and_allows_other_requests(
    broker: LocalNode, namespace: str
) -> None:
    """The rest stays in its order; a second job is refused."""
    async with setting(broker, namespace) as at:
        await at.running.bridge.components.intake.stop_consuming()
        await at.running.bridge.components.intake.settled()
        await publish_dead_letters(broker, at.names, 200)
        started = await at.api.ask(
            "POST", "/api/dead/redrive", {"all": True, "rate_per_s": 20}
        )
        job = started.body["job"]

        async def has_begun() -> bool:
            return bool((await at.api.get(f"/api/jobs/{job['id']}"))["done"] >= 3)

        await eventually(has_begun)
        queues = (await at.api.get("/api/queues"))["items"]
        [depth] = [queue["depth"] for queue in queues if queue["role"] == "dead"]
        other = await at.api.ask("POST", "/api/dead/redrive", {"all": True})
        cancelled = await at.api.ask("DELETE", f"/api/jobs/{job['id']}")
        again = await at.api.ask("DELETE", f"/api/jobs/{job['id']}")
        jobs = await at.api.get("/api/jobs")
        left = await at.remaining()

    done = cancelled.body["done"]
    assert other.status == 409
    assert cancelled.body["state"] == again.body["state"] == "cancelled"
    assert 3 <= done < 200
    # The job has taken a hundred of them; a session takes all messages returned before.
    assert 200 - done <= depth <= 197
    assert [one["id"] for one in jobs["items"]] == [job["id"]]
    assert left == list(range(done, 200))


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/dead/unknown", None, 404),
        ("GET", "/api/dead?cursor=x", None, 422),
        ("GET", "/api/dead?limit=0", None, 422),
        ("GET", "/api/dead?limit=1e2", None, 422),
        ("GET", "/api/dead?colour=red", None, 400),
        ("GET", "/api/dead?reason=rain", None, 422),
        ("GET", "/api/jobs/unknown", None, 404),
        ("DELETE", "/api/jobs/unknown", None, 404),
        ("POST", "/api/dead/redrive", {}, 422),
        ("POST", "/api/dead/redrive", {"all": True, "ids": ["0" * 24]}, 422),
        ("POST", "/api/dead/redrive", {"filter": {}}, 422),
        ("POST", "/api/dead/redrive", {"ids": ["x"]}, 422),
        ("POST", "/api/dead/redrive", {"all": True, "rate_per_s": 0}, 422),
        ("POST", "/api/dead/redrive", {"all": "yes"}, 400),
        ("POST", "/api/dead/redrive", [], 400),
        ("POST", "/api/dead/discard", {"ids": ["0" * 24], "confirm": 1}, 409),
    ],
    ids=str,
)
async def test_invalid_requests_are_refused_with_a_problem(
    shared: DeadLetterSetup, method: str, path: str, body: object, status: int
) -> None:
    """The problem names the field."""
    answer = await shared.api.ask(method, path, body)

    assert answer.status == status, answer
    assert answer.body["detail"]
    assert answer.body["status"] == status


@pytest.fixture
async def shared(broker: LocalNode, namespace: str) -> AsyncIterator[DeadLetterSetup]:
    """Run a bridge for one test."""
    async with setting(broker, namespace) as at:
        yield at
