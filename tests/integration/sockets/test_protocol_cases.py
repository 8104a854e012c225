"""The bridge behaves as the protocols want, except where a list says why not."""

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from bridge.core.origins import OriginRules
from tests.integration.sockets.protocol_cases import CASES, CLOSED, OPEN, Peer
from tests.integration.sockets.running_server import Plan, open_server


@dataclass(frozen=True)
class Deviation:
    """What a server does instead, and why."""

    outcome: object
    why: str


# docs/protocol-notes.md explains them to users.
EXCEPTIONS: dict[str, Deviation] = {
    "jsonp_is_served": Deviation(400, "a script in any page could open a session"),
    "binary_events_are_accepted": Deviation(
        CLOSED, "attachments would be buffered until all of them are there"
    ),
    "a_second_connect_closes_the_session": Deviation(
        "44", "it is refused with a reason, and the window stays"
    ),
    "a_client_that_disconnects_may_connect_again": Deviation(
        CLOSED, "a session is one window; the stock client opens a new session"
    ),
    "auth_is_an_object": Deviation("44", "it is refused with a reason"),
    "an_event_may_be_named_by_a_number": Deviation(
        CLOSED, "no event of bridge has such a name"
    ),
    "a_reserved_event_closes_the_session": Deviation(
        OPEN, "it is ignored, as all unknown events"
    ),
    "a_packet_to_another_namespace_closes_the_session": Deviation(
        OPEN, "it is ignored, as all unknown events"
    ),
}
# Where Node's server is not as strict as the documents.
NODE_EXCEPTIONS: dict[str, Deviation] = {
    "a_client_closes_its_session_over_a_websocket": Deviation(
        OPEN, "it ignores the packet: its client closes the WebSocket itself"
    ),
    "an_event_without_data_closes_the_session": Deviation(
        OPEN, "it ignores the packet"
    ),
}


@pytest.fixture(scope="module")
def reference_ports() -> Iterator[list[int]]:
    """The ports of Node's server: usual pings, fast pings."""
    script = Path(__file__).with_name("reference_server.js")
    with subprocess.Popen(
        ["node", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(10)


@asynccontextmanager
async def peer_of(url: str) -> AsyncIterator[Peer]:
    """A client of the server at `url`."""
    async with aiohttp.ClientSession() as http:
        yield Peer(url, http)


@pytest.mark.parametrize("name", CASES)
async def test_the_bridge_follows_the_protocols(name: str) -> None:
    """A new deviation, and one that has gone, fail until the list is right."""
    case = CASES[name]
    plan = Plan(
        connect_s=3.0,
        origins=OriginRules(allowed=frozenset({"http://a.example"})),
        ping_interval_s=1 if case.has_fast_pings else 25,
        ping_timeout_s=2 if case.has_fast_pings else 20,
    )
    async with open_server(plan) as server, peer_of(server.url) as peer:
        seen = await case.run(peer)
    deviation = EXCEPTIONS.get(name)
    assert seen == (deviation.outcome if deviation else case.expected)


@pytest.mark.parametrize("name", CASES)
async def test_nodes_server_sees_the_same(
    name: str, reference_ports: list[int]
) -> None:
    """The cases are right: the reference implementation passes them."""
    case = CASES[name]
    port = reference_ports[case.has_fast_pings]
    async with peer_of(f"http://127.0.0.1:{port}") as peer:
        seen = await case.run(peer)
    deviation = NODE_EXCEPTIONS.get(name)
    assert seen == (deviation.outcome if deviation else case.expected)


@pytest.mark.parametrize("exceptions", [EXCEPTIONS, NODE_EXCEPTIONS])
def test_each_exception_is_one(exceptions: dict[str, Deviation]) -> None:
    """An entry for a case that does not exist, or without a difference, is obsolete."""
    for name, deviation in exceptions.items():
        assert deviation.outcome != CASES[name].expected, name
        assert deviation.why
