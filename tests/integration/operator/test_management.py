"""The API's queues with RabbitMQ's management API, and while it is unreachable."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import encode_basic_auth, web
from aiohttp.test_utils import BaseTestServer, TestServer

from tests.conftest import eventually
from tests.integration.operator.api_client import ApiAsker, asking
from tests.integration.running import running_bridge, settings_for
from tests.local_node import LocalNode

# The response of RabbitMQ 3.10 to GET /api/queues/VHOST/NAME?columns=…
ANSWER = {
    "consumers": 1,
    "message_stats": {
        "deliver_get": 12,
        "deliver_get_details": {"rate": 2.5},
        "publish": 12,
        "publish_details": {"rate": 0.0},
    },
    "messages_ready": 3,
    "messages_unacknowledged": 4,
}


@pytest.fixture
async def management() -> AsyncIterator[BaseTestServer]:
    """Stand in for the plugin, which takes seconds to load; doctor/ tests the real one."""

    async def queue(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != encode_basic_auth("m", "p"):
            return web.Response(status=401)
        assert request.match_info["vhost"] == "/"
        return web.json_response(ANSWER)

    app = web.Application()
    app.router.add_get("/api/queues/{vhost}/{name}", queue)
    async with TestServer(app) as server:
        yield server


async def declared_queues(api: ApiAsker) -> list[dict[str, Any]]:
    """Return the queues on the broker once all of them are declared."""
    found: list[dict[str, Any]] = []

    async def are_declared() -> bool:
        queues = (await api.get("/api/queues"))["items"]
        found[:] = [queue for queue in queues if queue["role"] != "events"]
        return all(queue["depth"] is not None for queue in found)

    await eventually(are_declared)
    return found


async def test_the_management_api_adds_rates_and_unacked_messages(
    broker: LocalNode, namespace: str, management: BaseTestServer
) -> None:
    """Depth and consumers come from AMQP, which is always up to date."""
    url = str(management.make_url("")).replace("http://", "http://m:p@")
    settings = settings_for(broker, namespace, management_url=url)
    async with running_bridge(settings) as running, asking(running) as api:
        queues = await declared_queues(api)

    for queue in queues:
        assert (queue["source"], queue["problem"]) == ("management", None)
        assert queue["unacked"] == 4
        assert queue["rates"] == {"in_per_s": 0.0, "out_per_s": 2.5}
        assert queue["depth"] == 0


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:1", "127.0.0.1:1: it cannot be reached"),
        ("http://m:wrong@HOST", "it rejects the login"),
    ],
)
async def test_without_the_management_api_amqp_provides_the_rest(
    broker: LocalNode,
    namespace: str,
    management: BaseTestServer,
    url: str,
    problem: str,
) -> None:
    """The response contains the problem, without a password."""
    place = f"{management.host}:{management.port}"
    settings = settings_for(
        broker, namespace, management_url=url.replace("HOST", place)
    )
    async with running_bridge(settings) as running, asking(running) as api:
        queues = await declared_queues(api)

    for queue in queues:
        assert (queue["source"], queue["rates"], queue["depth"]) == ("amqp", None, 0)
        assert problem in queue["problem"]
        assert "wrong" not in queue["problem"]
