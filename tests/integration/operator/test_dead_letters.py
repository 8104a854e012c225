"""Dead letters over the API: redriven, discarded, and nothing else changed."""

from collections.abc import AsyncIterator

import pytest

from bridge.core.broker_names import BrokerNames
from bridge.core.properties import (
    PERSISTENT,
    Properties,
)
from bridge.demo.private_node import LocalNode
from tests.conftest import eventually
from tests.integration.amqp.conftest import open_raw
from tests.integration.dead_letters import take_all
from tests.integration.operator.dead_letter_fixtures import publish_letters
from tests.integration.operator.dead_letter_setting import Setting, setting
from tests.integration.running import open_windows


async def test_a_redrive_reaches_the_user_and_nobody_else_twice(
    broker: LocalNode, namespace: str
) -> None:
    """It comes by the inbound exchange: others who listen to the messages had theirs."""
    async with (
        setting(broker, namespace) as at,
        open_windows(
            at.running.listening.public_url, [at.running.token("ann")]
        ) as windows,
    ):
        await publish_letters(broker, at.names, 20)
        dry = await at.api.ask(
            "POST", "/api/dead/redrive", {"all": True, "dry_run": True}
        )
        job = await at.start("redrive", all=True, rate_per_s=1000)
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


async def test_letters_that_come_back_are_counted_and_not_sent_again(
    broker: LocalNode, namespace: str
) -> None:
    """Nothing was mended: the job ends, and the letters say that they were redriven."""
    async with setting(broker, namespace) as at:
        for _ in range(3):
            await at.worker.publish("ann", body=b"no JSON")
        await eventually(lambda: at.has_ready(3))
        for turn in (1, 2):
            job = await at.start(
                "redrive", filter={"reason": "malformed_body"}, rate_per_s=1000
            )
            assert (job["state"], job["done"]) == ("done", 3)
            await eventually(lambda: at.has_ready(3))
            page = await at.api.get("/api/dead")
            assert [letter["redrives"] for letter in page["items"]] == [turn] * 3


async def test_an_expired_letter_gets_its_time_to_live_anew(
    broker: LocalNode, namespace: str
) -> None:
    """It was set aside because nobody was there; now somebody is."""
    properties = Properties(expiration=b"100", delivery_mode=PERSISTENT)
    async with setting(broker, namespace) as at:
        await at.running.bridge.components.intake.stop_consuming()
        await at.running.bridge.components.intake.settled()
        await at.worker.publish("ann", "late", properties=properties)
        await eventually(lambda: at.has_ready(1))
        await at.start("redrive", all=True)
        await eventually(lambda: at.has_ready(1))  # nobody consumes: it expires again
        page = await at.api.get("/api/dead")

    assert page["items"][0]["reason"] == "expired"
    assert page["items"][0]["redrives"] == 1


async def test_a_redrive_that_is_repeated_is_known_to_the_inbox(
    broker: LocalNode, namespace: str
) -> None:
    """Kill -9 between confirm and ack: the letter is sent again, and stored once."""
    async with (
        setting(broker, namespace) as at,
        open_windows(
            at.running.listening.public_url, [at.running.token("ann")]
        ) as windows,
    ):
        await publish_letters(broker, at.names, 3)
        letters = at.running.bridge.components.dead_letters
        found = [
            await letters.find(i["id"])
            for i in (await at.api.get("/api/dead"))["items"]
        ]
        for one in found:
            assert one is not None
            await letters._publish(one[1])  # confirmed, and then the process is killed
        await at.start("redrive", all=True, rate_per_s=1000)
        await eventually(lambda: at.running.settled("duplicate") == 3)

    assert windows[0].data() == [0, 1, 2]


async def test_what_cannot_be_redriven_stays_and_the_rest_goes(
    broker: LocalNode, namespace: str
) -> None:
    """A routing key that is no UTF-8 could only be sent to somebody else."""
    async with setting(broker, namespace) as at:
        await at.worker.publish("ann", body=b"no JSON")
        async with open_raw(broker.url) as raw:
            await raw.publish(at.names.messages, b"\xff\xfe")
        await eventually(lambda: at.has_ready(2))
        await at.running.bridge.components.intake.stop_consuming()
        await at.running.bridge.components.intake.settled()
        job = await at.start("redrive", all=True)
        page = await at.api.get("/api/dead")

    assert (job["state"], job["done"], job["failed"]) == ("done", 1, 1)
    assert "not UTF-8" in job["error"]
    assert [letter["reason"] for letter in page["items"]] == ["bad_user"]


async def test_a_discard_needs_the_number_and_drops_only_what_was_meant(
    broker: LocalNode, namespace: str
) -> None:
    """A filter typed too wide must not empty the queue."""
    async with setting(broker, namespace) as at:
        await publish_letters(broker, at.names, 30, users=("ann", "tom", "eve"))
        selection = {"filter": {"user": "tom"}}
        told = await at.api.ask(
            "POST", "/api/dead/discard", {**selection, "dry_run": True}
        )
        unsure = await at.api.ask("POST", "/api/dead/discard", selection)
        wrong = await at.api.ask(
            "POST", "/api/dead/discard", {**selection, "confirm": 9}
        )
        job = await at.start("discard", **selection, confirm=told.body["would"])
        left = await at.order()

    assert told.body == {"would": 10}
    assert (unsure.status, wrong.status) == (409, 409)
    assert "10 dead letters match" in wrong.body["detail"]
    assert job["done"] == 10
    assert left == [n for n in range(30) if n % 3 != 1]


async def test_twins_are_told_apart(broker: LocalNode, namespace: str) -> None:
    """The same message twice, expired in the same second: one is meant, one goes."""
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
        job = await at.start("discard", ids=ids[1:2], confirm=1)

    assert len(set(ids)) == 3
    assert job["done"] == 1
    assert len(await take_all(broker, BrokerNames(namespace).dead)) == 2


async def test_a_job_can_be_cancelled_and_others_look_while_it_runs(
    broker: LocalNode, namespace: str
) -> None:
    """What it had not done stays in its order; a second job waits its turn."""
    async with setting(broker, namespace) as at:
        await at.running.bridge.components.intake.stop_consuming()
        await at.running.bridge.components.intake.settled()
        await publish_letters(broker, at.names, 200)
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
        left = await at.order()

    done = cancelled.body["done"]
    assert other.status == 409
    assert cancelled.body["state"] == again.body["state"] == "cancelled"
    assert 3 <= done < 200
    # The job holds a hundred of them, and a look all that looks before gave back.
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
async def test_wrong_questions_are_refused_and_say_why(
    shared: Setting, method: str, path: str, body: object, status: int
) -> None:
    """Each with a problem that names the field."""
    answer = await shared.api.ask(method, path, body)

    assert answer.status == status, answer
    assert answer.body["detail"]
    assert answer.body["status"] == status


@pytest.fixture
async def shared(broker: LocalNode, namespace: str) -> AsyncIterator[Setting]:
    """A bridge of this test's own."""
    async with setting(broker, namespace) as at:
        yield at
