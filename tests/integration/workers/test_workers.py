"""Two workers behind one port, as a program: real broker, real Redis, stock clients."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import orjson

from tests.conftest import eventually
from tests.integration.running import SECRET, open_worker
from tests.integration.workers.conftest import (
    LIMIT_S,
    Pages,
    Program,
    environment,
    pages,
    program,
)
from tests.local_node import LocalNode
from tests.processes import is_alive
from tests.redis_server import RedisServer

# One worker gets all of them only in one of 2^15 runs.
WINDOWS = 16
API_KEY = "api-key-of-the-tests"


async def all_have(opened: Pages, expected: list[object], *, count: int) -> None:
    """Wait until every window has received exactly `expected`, in order."""
    await eventually(
        lambda: all(opened.data(window) == expected for window in range(count)),
        within_s=30,
    )


async def test_windows_of_both_workers_receive_every_message_on_any_transport(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """
    The kernel distributes connections, so a user has windows at both workers.

    A stock client begins with polling. Each of its requests, also the upgrade to WebSocket,
    may arrive at the worker that does not own the session.
    """
    async with (
        program(broker, namespace, redis_server) as running,
        open_worker(broker, namespace) as worker,
        pages(running.public_url, "ann", count=WINDOWS) as by_default,
        pages(
            running.public_url, "ann", count=WINDOWS, transports="websocket"
        ) as by_websocket,
        pages(
            running.public_url, "ann", count=WINDOWS, transports="polling"
        ) as by_polling,
    ):
        expected: list[object] = [{"number": number} for number in range(20)]
        for data in expected:
            await worker.publish("ann", data)

        for opened in (by_default, by_websocket, by_polling):
            await all_have(opened, expected, count=WINDOWS)
            assert opened.owners() == {"0", "1"}
            assert opened.of("error") == []
            assert opened.of("disconnect") == []
        await eventually(lambda: len(by_default.of("upgrade")) == WINDOWS)
        # Nobody owns these sessions, so the client has to open a new one.
        for unknown in ("x" * 20, "x" * 20 + ".0", "x" * 20 + ".1", "x" * 20 + ".7"):
            assert await answer_to(running, unknown) == (400, "unknown session")


async def answer_to(running: Program, session_id: str) -> tuple[int, str]:
    """Poll for a session."""
    url = f"{running.public_url}/socket.io/?EIO=4&transport=polling&sid={session_id}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_the_operator_port_shows_all_workers_as_one_bridge(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """Metrics, users, overview, trace and kick cover all workers."""
    async with (
        program(broker, namespace, redis_server) as running,
        pages(
            running.public_url, "ann", count=WINDOWS, transports="websocket"
        ) as opened,
    ):
        assert opened.owners() == {"0", "1"}
        asked = {"user": "ann", "data": 1, "id": "m-1"}
        assert (await running.request("POST", "/api/publish", asked))[0] == 202
        await all_have(opened, [1], count=WINDOWS)

        assert await running.sample("bridge_emitted_total") == WINDOWS
        assert await running.sample("bridge_workers") == 2
        await eventually(lambda: has_windows(running, WINDOWS))
        assert await of_ann(running) == WINDOWS
        overview = orjson.loads((await running.get("/api/overview"))[1])
        assert overview["windows"] == overview["totals"]["emitted"] == WINDOWS
        trace = orjson.loads((await running.get("/api/trace/m-1"))[1])
        stages = [step["stage"] for step in trace["story"]]
        assert stages[:2] == ["published", "taken"]
        written = [s["windows"] for s in trace["story"] if s["stage"] == "written"]
        assert sum(written) == WINDOWS
        (page,) = orjson.loads((await running.get("/api/users?online=true"))[1])[
            "items"
        ]
        assert (page["user"], page["windows"]) == ("ann", WINDOWS)
        # The supervisor and the worker both accept the longest list of names.
        names = ["ann", *("%C3%A4" * 127 + str(n % 10) for n in range(999))]
        status, body = await running.get(f"/api/presence?user={'&user='.join(names)}")
        assert status == 200, body
        ann, *others = orjson.loads(body)["items"]
        assert (ann["windows"], len(others)) == (WINDOWS, 999)
        assert not any(each["online"] for each in others)
        assert (await running.get("/api/dead"))[0] == 200
        queues = orjson.loads((await running.get("/api/queues"))[1])["items"]
        assert len({queue["name"] for queue in queues}) == len(queues)

        status, kicked = await running.request("POST", "/api/users/ann/kick")
        assert (status, orjson.loads(kicked)["kicked"]) == (200, WINDOWS)
        await eventually(lambda: len(opened.of("disconnect")) == WINDOWS)


async def has_windows(running: Program, count: int) -> bool:
    """Return whether both workers together report `count` windows, once a second."""
    return await running.sample("bridge_windows") == count


async def of_ann(running: Program) -> int:
    """Return how many windows of ann the API shows."""
    status, body = await running.get("/api/users/ann")
    assert status == 200, body
    return len(orjson.loads(body)["windows"])


async def test_a_worker_that_is_killed_under_load_loses_nothing(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """
    Its windows reconnect to any worker and receive the messages that they missed.

    Both workers are killed in turn, so one of them is the one that consumes.
    """
    total = 900  # fewer than an inbox keeps: a window may miss most of them
    async with (
        program(broker, namespace, redis_server) as running,
        open_worker(broker, namespace) as worker,
        pages(running.public_url, "ann", count=WINDOWS) as opened,
    ):
        before = running.workers()
        assert len(before) == 2
        for number in range(total):
            if number in {total // 3, 2 * total // 3}:
                os.kill(before[number * 3 // total - 1], signal.SIGKILL)
                await eventually(lambda: has_workers(running, 2), within_s=30)
            await worker.publish("ann", number)

        await eventually(lambda: has_all(opened, total), within_s=60)
        for window in range(WINDOWS):
            # The last messages before a kill may be written twice.
            seen = list(dict.fromkeys(opened.data(window)))
            assert seen == list(range(total))
        assert set(running.workers()).isdisjoint(before)
        assert await running.sample("bridge_worker_restarts_total") == 2
        assert not [each for each in opened.of("sync") if not each["complete"]]


def has_all(opened: Pages, total: int) -> bool:
    """Return whether every window has received every number."""
    return all(len(set(opened.data(w))) == total for w in range(WINDOWS))


async def has_workers(running: Program, count: int) -> bool:
    """Return whether `count` workers listen."""
    return await running.sample("bridge_workers") == count


async def test_sigterm_to_every_process_drains_once_and_ends_with_0(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """
    A service manager signals all processes; workers ignore the repeated signal.

    Over WebSocket, because a stock client whose server ends in the middle of an upgrade has
    paused its polls and notices the end only after the ping timeout.
    """
    async with (
        program(broker, namespace, redis_server) as running,
        pages(running.public_url, "ann", count=4, transports="websocket") as opened,
    ):
        for pid in (running.process.pid, *running.workers()):
            os.kill(pid, signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            code = await running.process.wait()

        assert code == 0
        await eventually(lambda: len(opened.of("disconnect")) == 4)

        def drained() -> list[object]:
            return [
                line.get("worker")
                for line in running.log
                if line["event"] in {"bridge.drained", "workers.drained"}
            ]

        await eventually(lambda: None in drained())
        assert [w for w in sorted(drained(), key=str) if w is not None] == [0, 1]


async def test_a_supervisor_that_is_killed_leaves_no_worker_behind(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """Orphans would keep the port and their windows forever."""
    async with program(broker, namespace, redis_server) as running:
        workers = running.workers()
        running.process.kill()
        await running.process.wait()

        await eventually(lambda: not any(map(is_alive, workers)), within_s=30)

        def have_noticed() -> bool:
            found = [
                line["worker"]
                for line in running.log
                if line["event"] == "worker.supervisor_gone"
            ]
            return sorted(map(str, found)) == ["0", "1"]

        await eventually(have_noticed)  # the log is read by another task


async def test_sighup_reloads_every_worker_and_the_operator_port(
    broker: LocalNode, namespace: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """One signal to the supervisor changes all processes."""
    file = tmp_path / "bridge.toml"
    await asyncio.to_thread(file.write_text, "inbox_max_messages = 500\n")
    async with program(broker, namespace, redis_server, config=str(file)) as running:
        await asyncio.to_thread(file.write_text, "inbox_max_messages = 700\n")
        running.process.send_signal(signal.SIGHUP)

        def reloaded() -> set[object]:
            return {
                line["worker"]
                for line in running.log
                if line["event"] == "settings.reloaded"
                and line["changed"] == ["inbox_max_messages"]
                and line["needs_restart"] == []
            }

        await eventually(lambda: reloaded() == {0, 1})


async def refused(*arguments: str, **settings: str) -> tuple[int, str]:
    """Run `bridge run` to its end; return its status and its stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "run", *arguments),
        env=environment(jwt_secret=SECRET, **settings),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LIMIT_S):
        _, text = await process.communicate()
    assert process.returncode is not None
    return process.returncode, text.decode()


async def test_an_inbox_that_workers_cannot_share_refuses_the_start() -> None:
    """Each worker would have inboxes of its own; the error names the fix."""
    code, text = await refused("--workers", "2", inbox="memory:")

    assert code == 2
    assert "BRIDGE_WORKERS: 2 workers need an inbox that they share" in text
    assert "BRIDGE_INBOX=redis://" in text


async def test_a_public_port_that_is_taken_refuses_the_start_even_if_it_is_shared(
    redis_server: RedisServer,
) -> None:
    """SO_REUSEPORT would silently mix the windows of two bridges of one user."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        code, text = await refused(
            "--workers", "2", "--port", port, inbox=redis_server.url, operator_port="0"
        )

    assert code == 1
    assert f"BRIDGE_PORT: 127.0.0.1:{port} is taken by another process" in text


async def test_a_refused_start_of_a_worker_is_reported_once(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The supervisor exits with the status of the first worker, whose log has the error."""
    bad = tmp_path / "order.json"
    await asyncio.to_thread(bad.write_text, '{"type": "no such type"}')
    code, text = await refused(
        "--workers",
        "2",
        inbox=redis_server.url,
        schemas=str(tmp_path),
        port="0",
        operator_port="0",
    )

    assert code == 2
    assert text.count("order.json") == 1
    assert "worker 0 ended with status 2" in text


async def test_wrong_keys_lead_to_pauses_at_the_operator_port_of_several_workers(
    broker: LocalNode, namespace: str, redis_server: RedisServer
) -> None:
    """The supervisor compares all keys: workers do not see the address of a client."""
    async with (
        program(broker, namespace, redis_server, api_key=API_KEY) as running,
        aiohttp.ClientSession() as session,
    ):

        async def publish(key: str) -> int:
            body = {"user": "ann", "data": 1}
            url = f"{running.operator_url}/api/publish"
            headers = {"X-API-Key": key}
            async with session.post(url, json=body, headers=headers) as response:
                return response.status

        assert await publish(API_KEY) == 202
        async with session.get(
            f"{running.operator_url}/console", headers={"Host": "evil.example"}
        ) as response:
            assert response.status == 421
        name = 'bridge_keys_refused_total{outcome="wrong"}'
        assert await running.sample(name) == 0
        statuses = [await publish(f"guess-number-{number}") for number in range(8)]
        status, _ = await running.get("/metrics")

        assert statuses == [401] * 5 + [429] * 3
        assert status == 429
        await eventually(lambda: running.sample(name), within_s=30)
