"""Dead letters over the API: looked at, redriven, discarded, and nothing else changed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from bridge.broker.local_node import LocalNode
from bridge.core.properties import (
    PERSISTENT,
    Properties,
    header_int,
    render_table,
)
from bridge.names import BrokerNames
from tests.conftest import eventually
from tests.integration.broker.conftest import open_raw
from tests.integration.operator.asking import ApiAsker, asking
from tests.integration.operator.letters import (
    BASE_S,
    numbers,
    publish_letters,
    ready,
    take_all,
)
from tests.integration.running import (
    RunningBridge,
    Worker,
    open_windows,
    running_bridge,
    settings_for,
    working,
)


@dataclass
class Setting:
    """A bridge, its API, its dead letters."""

    running: RunningBridge
    api: ApiAsker
    worker: Worker
    names: BrokerNames
    broker: LocalNode

    async def order(self) -> list[int]:
        """Take all letters that are left, in their order."""
        return numbers(await take_all(self.broker, self.names.dead))

    async def start(self, what: str, **body: object) -> Any:
        """Start a job and return it when it has ended."""
        answer = await self.api.ask("POST", f"/api/dead/{what}", body)
        assert answer.status == 202, answer
        job = answer.body["job"]

        async def has_ended() -> bool:
            nonlocal job
            job = await self.api.get(f"/api/jobs/{job['id']}")
            return bool(job["state"] != "running")

        await eventually(has_ended, within_s=60)
        return job


@asynccontextmanager
async def setting(
    broker: LocalNode, namespace: str, **changes: object
) -> AsyncIterator[Setting]:
    async with (
        running_bridge(settings_for(broker, namespace, **changes)) as running,
        working(broker, namespace) as worker,
        asking(running) as api,
    ):
        yield Setting(running, api, worker, BrokerNames(namespace), broker)


async def test_letters_are_listed_oldest_first_and_say_why_they_are_there(
    broker: LocalNode, namespace: str
) -> None:
    """What the bridge set aside, and what expired in its queue by the broker's hand."""
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
        await eventually(lambda: ready_is(at, 1))
        await at.running.bridge.intake.stop_consuming()
        await at.worker.publish("tom", {"n": 1}, properties=expired)
        await eventually(lambda: ready_is(at, 2))

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
    assert again["items"] == page["items"]  # the same ids, whatever the broker counted
    assert first["body_text"] == "no JSON"
    assert first["headers"]["x-mine"] == "kept"
    assert "x-delivery-count" not in first["headers"]
    assert "not one JSON value" in first["explanation"]
    assert second["body_text"] is None
    assert second["properties"]["type"] == "note"
    assert "time ran out" in second["explanation"]
    assert second["headers"]["x-death"][0]["reason"] == "expired"


async def ready_is(at: Setting, count: int) -> bool:
    return await ready(at.broker, at.names.dead) == count


async def test_filters_and_pages_find_each_letter_once(
    broker: LocalNode, namespace: str
) -> None:
    """Also when letters leave and come while somebody turns pages."""
    async with setting(broker, namespace) as at:
        await publish_letters(
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
        job = await at.start("discard", ids=seen[10:25], confirm=15)
        await publish_letters(broker, at.names, 5, start=100)
        while page["next"]:
            page = await at.api.get(f"/api/dead?limit=30&cursor={page['next']}")
            seen += [letter["id"] for letter in page["items"]]
        left = await at.order()

    assert len(of_tom["items"]) == 50
    assert [letter["dead_s"] - BASE_S for letter in crashed["items"]] == list(
        range(0, 100, 6)
    )
    assert [letter["dead_s"] - BASE_S for letter in timed["items"]] == [10, 11, 12]
    assert (none["items"], none["scanned"], none["total"]) == ([], 100, 100)
    assert (job["state"], job["done"]) == ("done", 15)
    assert len(seen) == len(set(seen)) == 105
    assert left == [*range(10), *range(25, 105)]


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
        await eventually(lambda: ready_is(at, 3))
        for turn in (1, 2):
            job = await at.start(
                "redrive", filter={"reason": "malformed_body"}, rate_per_s=1000
            )
            assert (job["state"], job["done"]) == ("done", 3)
            await eventually(lambda: ready_is(at, 3))
            page = await at.api.get("/api/dead")
            assert [letter["redrives"] for letter in page["items"]] == [turn] * 3


async def test_an_expired_letter_gets_its_time_to_live_anew(
    broker: LocalNode, namespace: str
) -> None:
    """It was set aside because nobody was there; now somebody is."""
    properties = Properties(expiration=b"100", delivery_mode=PERSISTENT)
    async with setting(broker, namespace) as at:
        await at.running.bridge.intake.stop_consuming()
        await at.worker.publish("ann", "late", properties=properties)
        await eventually(lambda: ready_is(at, 1))
        await at.start("redrive", all=True)
        await eventually(lambda: ready_is(at, 1))  # nobody consumes: it expires again
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
        letters = at.running.bridge.operators.dead_letters
        found = [
            await letters.find(i["id"])
            for i in (await at.api.get("/api/dead"))["items"]
        ]
        for one in found:
            assert one is not None
            await letters._publish(one[1])  # confirmed, and then the process is killed
        await at.start("redrive", all=True, rate_per_s=1000)
        await eventually(
            lambda: (
                at.running.sample(
                    "bridge_deliveries_settled_total", outcome="duplicate", reason=""
                )
                == 3
            )
        )

    assert windows[0].data() == [0, 1, 2]


async def test_what_cannot_be_redriven_stays_and_the_rest_goes(
    broker: LocalNode, namespace: str
) -> None:
    """A routing key that is no UTF-8 could only be sent to somebody else."""
    async with setting(broker, namespace) as at:
        await at.worker.publish("ann", body=b"no JSON")
        async with open_raw(broker.url) as raw:
            await raw.publish(at.names.messages, b"\xff\xfe")
        await eventually(lambda: ready_is(at, 2))
        await at.running.bridge.intake.stop_consuming()
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
        await at.running.bridge.intake.stop_consuming()
        for _ in range(3):
            await at.worker.publish(
                "ann",
                1,
                properties=Properties(expiration=b"0", delivery_mode=PERSISTENT),
            )
        await eventually(lambda: ready_is(at, 3))
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
        await at.running.bridge.intake.stop_consuming()
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


async def test_two_looks_at_a_time_take_turns(
    broker: LocalNode, namespace: str
) -> None:
    """Two consoles: each sees all of it."""
    async with setting(broker, namespace) as at:
        await publish_letters(broker, at.names, 50)
        pages = await asyncio.gather(
            *(at.api.get("/api/dead?limit=5") for _ in range(5))
        )
        left = await at.order()

    assert all(page == pages[0] for page in pages)
    assert left == list(range(50))


async def looks_at(at: Setting, number: int = 0) -> int:
    """Take all letters; return how often RabbitMQ handed out one of them before."""
    letters = await take_all(at.broker, at.names.dead)
    return header_int(letters[number].properties.headers, "x-delivery-count") or 0


async def test_pages_are_turned_and_filters_changed_without_another_look(
    broker: LocalNode, namespace: str
) -> None:
    """Each look makes the broker read all that was looked at before, for seconds."""
    async with setting(broker, namespace) as at:
        await publish_letters(broker, at.names, 60, users=("ann", "tom"))
        first = await at.api.get("/api/dead?limit=20")
        second = await at.api.get(f"/api/dead?limit=20&cursor={first['next']}")
        nobody = await at.api.get("/api/dead?user=nobody")
        await publish_letters(broker, at.names, 3, start=60)
        again = await at.api.get("/api/dead?limit=20")
        looks = await looks_at(at)

    assert looks == 1
    assert (nobody["items"], nobody["scanned"], nobody["total"]) == ([], 60, 60)
    assert again == {**first, "total": 63}
    assert [letter["dead_s"] - BASE_S for letter in second["items"]] == list(
        range(20, 40)
    )


async def test_a_filter_sees_what_came_since_the_look_before(
    broker: LocalNode, namespace: str
) -> None:
    """What is remembered is the head of the queue, not its end."""
    async with setting(broker, namespace) as at:
        await publish_letters(broker, at.names, 10)
        before = await at.api.get("/api/dead?user=tom")
        await publish_letters(broker, at.names, 1, users=("tom",), start=10)
        after = await at.api.get("/api/dead?user=tom")

    assert before["items"] == []
    assert [letter["user"] for letter in after["items"]] == ["tom"]


async def test_a_list_is_true_after_somebody_else_took_letters(
    broker: LocalNode, namespace: str
) -> None:
    """Another bridge, or RabbitMQ's own page."""
    async with setting(broker, namespace) as at:
        await publish_letters(broker, at.names, 10)
        await at.api.get("/api/dead")
        async with open_raw(broker.url) as raw:
            for _ in range(4):
                await raw.channel.basic_get(at.names.dead, no_ack=True)
        page = await at.api.get("/api/dead")

    assert [letter["dead_s"] - BASE_S for letter in page["items"]] == list(range(4, 10))
