"""The snippets of docs/producers.md and README publish what they say."""

import ast
import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any, Final

import aio_pika
import aiohttp
import pytest

from tests.conftest import eventually
from tests.integration.programs import LIMIT_S, environment, settings_for_program
from tests.integration.running import (
    OPERATOR_TOKEN,
    RunningBridge,
    open_windows,
    python_client,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

_ROOT: Final = Path(__file__).parents[2]
_BLOCK: Final = re.compile(r"^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_API_KEY: Final = "api-key-of-the-tests"


def block(page: str, heading: str) -> str:
    """Return the first code block under a heading."""
    text = (_ROOT / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    match = _BLOCK.search(text)
    assert match
    return match[1]


@pytest.fixture
async def running(broker: LocalNode, namespace: str) -> AsyncIterator[RunningBridge]:
    presence = {"presence": "true", "presence_debounce": "100ms"}
    settings = settings_for(broker, namespace, api_key=_API_KEY, **presence)
    async with running_bridge(settings) as running:
        yield running


@pytest.fixture
def adapt(broker: LocalNode, namespace: str, running: RunningBridge) -> Any:
    """Put the addresses and names of this test into a block."""

    def adapted(text: str) -> str:
        for url in ("amqp://guest:guest@localhost/", "amqp://localhost"):
            text = text.replace(url, broker.url)
        for exchange in ("messages", "events"):
            text = text.replace(f"bridge.{exchange}", f"{namespace}.{exchange}")
        return text.replace("http://127.0.0.1:8081", running.listening.operator_url)

    return adapted


async def inbox(running: RunningBridge) -> list[dict[str, Any]]:
    """Return the messages of Ann, newest first."""
    url = f"{running.listening.operator_url}/api/users/ann/inbox?data=true"
    headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(url) as response,
    ):
        items: list[dict[str, Any]] = (await response.json()).get("items", [])
    return items


async def end(worker: asyncio.Task[None]) -> None:
    """
    Cancel a worker, and wait until it has closed its connection.

    If the event loop ended it, it would cancel the tasks of the connection as well, and the
    worker would wait for the broker's answer without an end.
    """
    worker.cancel()
    done, _ = await asyncio.wait({worker}, timeout=LIMIT_S)
    assert done


async def arrived(running: RunningBridge, *ids: str) -> None:
    async def is_there() -> bool:
        return {item.get("message_id") for item in await inbox(running)} >= set(ids)

    await eventually(is_there)


async def run(*arguments: str, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env=environment() | variables,
        cwd=_ROOT / "tests",
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize(
    ("page", "heading"), [("docs/producers.md", "Python"), ("README.md", "Publish")]
)
async def test_the_python_snippet(
    adapt: Any, running: RunningBridge, page: str, heading: str
) -> None:
    """The first thing that a reader copies."""
    code = compile(
        adapt(block(page, heading)),
        "block",
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )
    await eval(code, {})  # noqa: S307 - a block of our own page

    await arrived(running, "order-17")


async def test_the_worker_that_records_receipts(
    adapt: Any, running: RunningBridge
) -> None:
    """It receives the outcomes of messages that are published after it was started."""
    code = adapt(block("docs/producers.md", "Receipts"))
    code = code.replace('"outcomes", durable=True', "exclusive=True")
    names: dict[str, Any] = {"__name__": "worker"}
    exec(code, names)  # noqa: S102 - a block of our own page
    outcomes: dict[str, str] = {}
    recording = asyncio.create_task(names["record"](outcomes), name="worker")
    url = f"{running.listening.operator_url}/api/publish"
    headers = {"Authorization": f"Bearer {_API_KEY}"}
    body = {"user": "ann", "data": 1, "id": "order-17", "receipt": True, "ttl_s": 0.1}

    async def is_recorded() -> bool:
        # The first ones may be published before the worker has bound its queue.
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(url, json=body) as response,
        ):
            assert response.status == 202
        return outcomes == {"order-17": "expired"}

    await eventually(is_recorded)
    await end(recording)


async def test_the_worker_that_knows_who_is_online(
    adapt: Any, running: RunningBridge, broker: LocalNode, namespace: str
) -> None:
    """Ann has a window, and closes it."""
    code = adapt(block("docs/producers.md", "Who is online"))
    name = f"{namespace}.presence"
    code = code.replace('"presence"', f'"{name}"')
    names: dict[str, Any] = {"__name__": "worker"}
    exec(code, names)  # noqa: S102 - a block of our own page
    users: dict[str, tuple[int, bool]] = {}
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, durable=True)
        await queue.bind(f"{namespace}.events", "user.*")
        following = asyncio.create_task(names["follow_users"](users), name="worker")
        async with open_windows(running.listening.public_url, [running.token("ann")]):
            await eventually(lambda: "ann" in users)
            assert users["ann"][1]
        await eventually(lambda: not users["ann"][1])
        await end(following)
        await channel.queue_delete(name)


async def test_the_worker_that_mails_late_messages(
    adapt: Any, running: RunningBridge, broker: LocalNode, namespace: str
) -> None:
    """Ann stays away and gets a mail; Bob opens a page in time and gets none."""
    code = adapt(block("docs/producers.md", "Messages that are not delivered in time"))
    code = code.replace('"late-messages", durable=True', "exclusive=True")
    names: dict[str, Any] = {"__name__": "worker"}
    exec(code, names)  # noqa: S102 - a block of our own page
    mails: dict[str, list[tuple[str, object]]] = {}

    async def send(mail_id: str, user: str, data: object) -> None:
        mails.setdefault(user, []).append((mail_id, data))

    mailing = asyncio.create_task(names["mail_late_messages"](send), name="worker")
    async with (
        await aio_pika.connect(broker.url) as connection,
        python_client() as page,
    ):
        channel = await connection.channel()
        exchange = await channel.get_exchange(f"{namespace}.messages")

        async def publish(user: str, after: str) -> None:
            message = aio_pika.Message(
                b'{"n": 1}',
                headers={"x-bridge-undelivered-after": after},
                delivery_mode=2,
            )
            await exchange.publish(message, user)

        async def is_mailing() -> bool:
            await publish("cem", "100ms")
            return "cem" in mails

        await eventually(is_mailing)  # its queue is bound
        await publish("ann", "5s")
        await publish("bob", "5s")
        auth = {"token": running.token("bob")}
        await page.connect(running.listening.public_url, auth=auth)
        await eventually(lambda: "ann" in mails)
        await publish("dan", "100ms")
        await eventually(lambda: "dan" in mails)

    await end(mailing)
    assert [data for _, data in mails["ann"]] == [{"n": 1}]
    assert "bob" not in mails


async def test_the_node_snippet(adapt: Any, running: RunningBridge) -> None:
    """Its names of properties differ from those of AMQP."""
    code = adapt(block("docs/producers.md", "Node"))
    await run("node", "-e", f"(async () => {{ {code} }})()")

    await arrived(running, "order-18")


async def test_the_shell_and_http_snippets(
    adapt: Any, running: RunningBridge, broker: LocalNode, namespace: str
) -> None:
    """Scripts use them unchanged."""
    text = adapt(
        block("docs/producers.md", "Shell") + block("docs/producers.md", "HTTP")
    )
    variables = {
        f"BRIDGE_{name.upper()}": value
        for name, value in settings_for_program(
            broker, namespace, api_key=_API_KEY
        ).items()
    }
    function = f'bridge() {{ {sys.executable} -m bridge "$@"; }}\n'
    await run("bash", "-euc", function + text, **variables, PYTHONPATH=str(_ROOT))

    await arrived(running, "order-20", "order-24")
    assert {"10", "1"} <= {item["data"] for item in await inbox(running)}
