"""The doctor at a real broker: what is wrong is found, and what it says mends it."""

import shlex
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from yarl import URL

from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.management import ManagementApi, ManagementError
from bridge.amqp.topology import declare, topology
from bridge.core.broker_names import BrokerNames
from bridge.doctor.checks import examine
from bridge.doctor.peers import key_set_finding, running_bridge_findings
from bridge.doctor.results import Finding, Verdict
from bridge.enums import ExitCode
from bridge.settings.model import Settings
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import open_raw
from tests.integration.doctor.conftest import ManagedBroker
from tests.integration.running import running_bridge, settings_for
from tests.redis_server import RedisServer


def settings(
    broker: ManagedBroker, namespace: str, url: URL | None = None, **changes: object
) -> Settings:
    given = {"management_url": str(broker.url), "retry_delays": "1s"}
    if url is not None:
        given["amqp_url"] = str(url)
    return settings_for(broker.node, namespace, **(given | changes))


async def examined(chosen: Settings) -> dict[str, Finding]:
    """Return what the doctor says, by subject; in order."""
    return {finding.subject: finding async for finding in examine(chosen)}


def wrong(findings: dict[str, Finding]) -> dict[str, Finding]:
    return {s: f for s, f in findings.items() if f.verdict is Verdict.WRONG}


async def declare_all(broker: ManagedBroker, namespace: str) -> None:
    """Leave what a bridge that ran before leaves."""
    connection = await open_connection(
        BrokerAddress((broker.node.url,)), purpose=Purpose.CHECK, reader=FrameReader
    )
    try:
        wanted = topology(BrokerNames(namespace), (1.0,))
        await declare(connection, wanted, timeout_s=10 * SLOW_FACTOR)
    finally:
        await connection.leave()


@pytest.fixture
async def declared(managed_broker: ManagedBroker, namespace: str) -> BrokerNames:
    """The names of a bridge that ran before."""
    await declare_all(managed_broker, namespace)
    return BrokerNames(namespace)


async def test_with_the_least_permissions_all_is_well_and_nothing_is_changed(
    managed_broker: ManagedBroker, declared: BrokerNames
) -> None:
    """Looking must not make, take or move a thing."""
    pattern = rf"^{declared.namespace}\."
    url = await managed_broker.add_user("least", pattern, pattern, pattern)
    async with open_raw(managed_broker.node.url) as raw:
        await raw.publish(declared.dead)
        await raw.publish(declared.messages)
    paths = ("exchanges", "bindings", "policies")
    before = [await managed_broker.ask("GET", path) for path in paths]

    findings = await examined(settings(managed_broker, declared.namespace, url))

    assert wrong(findings) == {}
    assert findings["permissions of least"].verdict is Verdict.OK
    assert findings["bindings"].verdict is Verdict.OK
    assert findings["policies"].verdict is Verdict.OK
    assert findings["clock of the broker"].verdict is Verdict.OK
    assert [await managed_broker.ask("GET", path) for path in paths] == before
    async with open_raw(managed_broker.node.url) as raw:
        for queue in (declared.dead, declared.inbound_queue()):
            assert await raw.holds(queue, 1)


async def test_who_would_keep_a_bridge_from_taking_messages_is_told_before_it_starts(
    managed_broker: ManagedBroker, namespace: str, tmp_path: Path
) -> None:
    """One with an inbox of its own and any other must not share a user's messages."""
    subject = "other bridges"
    own = settings(managed_broker, namespace)
    shared = settings(managed_broker, namespace, inbox="redis://127.0.0.1:1/")
    nobody = (await examined(own))[subject]
    async with running_bridge(own):
        beside_itself = (await examined(own))[subject]
        kept_out = (await examined(shared))[subject]
    async with (
        RedisServer.start(tmp_path, is_durable=False) as redis,
        running_bridge(settings(managed_broker, namespace, inbox=redis.url)),
    ):
        stray = (await examined(own))[subject]
        one_more = (await examined(shared))[subject]

    for finding in (nobody, beside_itself, one_more):
        assert finding.verdict is Verdict.OK, finding
    assert "another would wait" in beside_itself.text
    for finding in (kept_out, stray):
        assert finding.verdict is Verdict.NOTE, finding
        assert "inbox is its own" in finding.text
        assert "BRIDGE_NAMESPACE" in finding.mend


@pytest.mark.parametrize("is_new", [True, False])
async def test_missing_permissions_are_found_and_the_command_gives_them(
    managed_broker: ManagedBroker, namespace: str, is_new: bool
) -> None:
    """Before the first start, when a probe may make nothing, and after it."""
    if not is_new:
        await declare_all(managed_broker, namespace)
    url = await managed_broker.add_user(
        "poor", rf"^{namespace}\.", rf"^{namespace}\.(inbound|retry)", "^$"
    )
    chosen = settings(managed_broker, namespace, url)

    lacking = wrong(await examined(chosen))["permissions of poor"]
    assert f"no write on {namespace}.messages, {namespace}.dead;" in lacking.text
    assert f"{namespace}.inbound.0" in lacking.text.partition("no read on")[2]

    # rabbitmqctl set_permissions --vhost / poor CONFIGURE WRITE READ
    *command, user, configure, write, read = shlex.split(lacking.mend)
    assert command == ["rabbitmqctl", "set_permissions", "--vhost", "/"]
    await managed_broker.set_permissions(user, configure, write, read)
    assert wrong(await examined(chosen)) == {}


async def test_a_user_without_any_permission_is_told_all_of_them(
    managed_broker: ManagedBroker, declared: BrokerNames
) -> None:
    """One round, not one right after the other."""
    url = await managed_broker.add_user("nobody", "^$", "^$", "^$")

    findings = await examined(settings(managed_broker, declared.namespace, url))

    text = findings["permissions of nobody"].text
    for right in ("configure", "write", "read"):
        assert f"no {right} on " in text
        assert declared.dead in text.partition(f"no {right} on ")[2].partition(";")[0]


async def test_a_changed_queue_argument_and_a_lost_binding_are_found(
    managed_broker: ManagedBroker, declared: BrokerNames
) -> None:
    """Somebody mended something by hand."""
    retry = declared.retry_queue(1000)
    async with open_raw(managed_broker.node.url) as raw:
        await raw.channel.queue_delete(retry)
        await raw.channel.queue_declare(
            retry,
            durable=True,
            arguments={"x-queue-type": "quorum", "x-message-ttl": 5},
        )
        await raw.channel.queue_unbind(declared.dead, declared.dead)

    found = wrong(await examined(settings(managed_broker, declared.namespace)))

    assert set(found) == {f"queue {retry}", "bindings"}
    assert "has x-" in found[f"queue {retry}"].text
    assert found[f"queue {retry}"].mend == (
        f"rabbitmqctl delete_queue --vhost / --if-empty {retry}"
    )
    assert found["bindings"].text.startswith(
        f"missing: {declared.dead} to queue {declared.dead}, {retry} to queue {retry};"
    )


async def test_a_policy_against_the_topology_is_found_with_its_name(
    managed_broker: ManagedBroker, declared: BrokerNames
) -> None:
    """It changes queues that nobody touched."""
    policy = {
        "pattern": rf"^{declared.namespace}\.inbound",
        "apply-to": "queues",
        "definition": {"message-ttl": 1000},
    }
    path = f"policies/%2F/{declared.namespace}"
    await managed_broker.ask("PUT", path, policy)
    try:
        found = wrong(await examined(settings(managed_broker, declared.namespace)))
    finally:
        await managed_broker.ask("DELETE", path)

    subject = f"policy {declared.namespace} on queue {declared.inbound_queue()}"
    assert set(found) == {subject}
    assert found[subject].mend == (
        f"rabbitmqctl clear_policy --vhost / {declared.namespace}"
    )


async def test_without_the_management_api_it_is_said_what_is_not_known(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """Not knowing is no fault, and no reason to say that all is well."""
    plain = settings(managed_broker, namespace).model_copy(
        update={"management_url": None}
    )
    refused = str(managed_broker.url.with_password("wrong"))
    away = "http://127.0.0.1:1/"
    no_api = str(managed_broker.url.with_port(URL(managed_broker.node.url).port or 0))

    for chosen, words in (
        (plain, "AMQP does not tell"),
        (settings(managed_broker, namespace, management_url=refused), "tag management"),
        (settings(managed_broker, namespace, management_url=away), "cannot be reached"),
        (
            settings(managed_broker, namespace, management_url=no_api),
            "cannot be reached",
        ),
    ):
        findings = await examined(chosen)
        finding = findings["policies, bindings and clock"]
        assert finding.verdict is Verdict.UNKNOWN
        assert words in finding.text
        assert "wrong:" not in finding.text
        assert wrong(findings) == {}


async def test_a_running_bridge_tells_whether_it_is_ready_and_what_it_refused(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """A page of a forgotten origin looks like silence from outside."""
    chosen = settings(managed_broker, namespace)
    async with running_bridge(chosen) as running:
        port = URL(running.listening.operator_url).port
        here = chosen.model_copy(update={"operator_port": port})
        before = await examined(here)
        evil = "https://evil.example/\u202e"
        await connect_from(running.listening.public_url, evil)
        await eventually(
            lambda: running.sample(
                "bridge_windows_refused_total", code="origin_not_allowed"
            )
        )
        after = await examined(here)
    gone = await examined(here)

    assert before["running bridge"].text == "is ready"
    assert before["origins"].verdict is Verdict.OK
    assert after["origins"].verdict is Verdict.NOTE
    assert after["origins"].text.startswith("1 windows were refused")
    assert r"'https://evil.example/\u202e' (1, last 20" in after["origins"].text
    assert gone["running bridge"].verdict is Verdict.UNKNOWN


async def test_a_key_set_that_cannot_be_had_is_a_peer_that_cannot_be_reached(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """Without it nobody can connect."""
    chosen = settings(
        managed_broker,
        namespace,
        jwt_algorithms="RS256",
        jwks_url="http://127.0.0.1:1/keys",
    )

    finding = (await examined(chosen))["key set"]

    assert finding.exit_code == ExitCode.UNREACHABLE


async def test_a_large_answer_of_the_management_api_is_read_to_its_end() -> None:
    """A vhost may have thousands of bindings, and they come in pieces."""
    entries = [{"source": f"exchange-{number}"} for number in range(20_000)]

    async def serve(_request: web.Request) -> web.Response:
        return web.json_response(entries)

    app = web.Application()
    app.router.add_get("/api/bindings/{vhost}", serve)
    async with TestServer(app, host="127.0.0.1") as server:
        url = server.make_url("/").with_user("u").with_password("p")
        management = ManagementApi(
            str(url), amqp_url="amqp://broker/my%20vhost", timeout_s=10 * SLOW_FACTOR
        )
        answer = await management.get(f"bindings/{management.vhost_path}")
        with pytest.raises(ManagementError, match="status 404"):
            await management.get("nothing")

    assert answer.value == entries


async def test_a_key_set_is_judged_by_the_algorithms_that_tokens_may_have(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """It can be fetched, and still no token could be checked with it."""
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    keys = {"keys": [ECAlgorithm.to_jwk(public, as_dict=True) | {"kid": "1"}]}

    async def serve(_request: web.Request) -> web.Response:
        return web.json_response(keys)

    app = web.Application()
    app.router.add_get("/keys", serve)
    async with TestServer(app, host="127.0.0.1") as server:
        for algorithms, verdict, words in (
            ("ES256", Verdict.OK, "1 for ES256"),
            ("ES256,RS256", Verdict.WRONG, "no key for RS256"),
        ):
            chosen = settings(
                managed_broker,
                namespace,
                jwt_algorithms=algorithms,
                jwks_url=str(server.make_url("/keys")),
            )
            finding = await key_set_finding(chosen)
            assert finding is not None
            assert finding.verdict is verdict
            assert words in finding.text


async def test_a_bridge_that_is_not_ready_is_told_from_something_else(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """The operator's token is for our own alone."""
    away = settings(managed_broker, namespace, URL("amqp://127.0.0.1:1/"))
    async with running_bridge(away, waits=False) as running:
        port = URL(running.listening.operator_url).port
        here = away.model_copy(update={"operator_port": port})
        ours = await running_bridge_findings(here)
    elsewhere = away.model_copy(update={"operator_port": managed_broker.url.port})
    (other,) = await running_bridge_findings(elsewhere)

    assert ours[0].verdict is Verdict.WRONG
    assert ours[0].text == "is not ready: nothing is consumed from the broker"
    assert (other.subject, other.verdict) == ("running bridge", Verdict.UNKNOWN)
    assert "something else listens" in other.text


async def connect_from(url: str, origin: str) -> None:
    """Open a websocket as a page of another site does, and see it refused."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"{url}/socket.io/?EIO=4&transport=websocket", origin=origin
        ) as page,
    ):
        await page.receive()
        await page.send_str('40{"token":"x"}')
        await page.receive()
