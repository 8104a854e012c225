"""Checks against a real broker: problems are found, and the suggested fixes work."""

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
from bridge.doctor.key_set import check_key_set
from bridge.doctor.listeners import check_running_bridge
from bridge.doctor.results import CheckResult, CheckStatus
from bridge.doctor.run import run_checks
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


async def check_results(chosen: Settings) -> dict[str, CheckResult]:
    """Return the results by subject, in order."""
    return {result.subject: result async for result in run_checks(chosen)}


def failed(results: dict[str, CheckResult]) -> dict[str, CheckResult]:
    return {s: f for s, f in results.items() if f.status is CheckStatus.FAIL}


async def declare_all(broker: ManagedBroker, namespace: str) -> None:
    """Declare the topology that an earlier bridge leaves behind."""
    connection = await open_connection(
        BrokerAddress((broker.node.url,)), purpose=Purpose.CHECK, reader=FrameReader
    )
    try:
        wanted = topology(BrokerNames(namespace), (1.0,))
        await declare(connection, wanted, timeout_s=10 * SLOW_FACTOR)
    finally:
        await connection.disconnect()


@pytest.fixture
async def declared(managed_broker: ManagedBroker, namespace: str) -> BrokerNames:
    """The names of a topology that an earlier bridge declared."""
    await declare_all(managed_broker, namespace)
    return BrokerNames(namespace)


async def test_with_the_least_permissions_no_check_fails_and_nothing_changes(
    managed_broker: ManagedBroker, declared: BrokerNames
) -> None:
    """Checks declare, consume and move nothing."""
    pattern = rf"^{declared.namespace}\."
    url = await managed_broker.add_user("least", pattern, pattern, pattern)
    async with open_raw(managed_broker.node.url) as raw:
        await raw.publish(declared.dead)
        await raw.publish(declared.messages)
    paths = ("exchanges", "bindings", "policies")
    before = [await managed_broker.ask("GET", path) for path in paths]

    results = await check_results(settings(managed_broker, declared.namespace, url))

    assert failed(results) == {}
    assert results["permissions of least"].status is CheckStatus.OK
    assert results["bindings"].status is CheckStatus.OK
    assert results["policies"].status is CheckStatus.OK
    assert results["clock of the broker"].status is CheckStatus.OK
    assert "holds 1 dead letter" in results[f"queue {declared.dead}"].text
    assert [await managed_broker.ask("GET", path) for path in paths] == before
    async with open_raw(managed_broker.node.url) as raw:
        for queue in (declared.dead, declared.inbound_queue()):
            assert await raw.holds(queue, 1)


async def test_bridges_that_would_keep_this_one_from_consuming_are_a_warning(
    managed_broker: ManagedBroker, namespace: str, tmp_path: Path
) -> None:
    """A bridge with its own inbox and any other must not share a user's messages."""
    subject = "other bridges"
    own = settings(managed_broker, namespace)
    shared = settings(managed_broker, namespace, inbox="redis://127.0.0.1:1/")
    without_others = (await check_results(own))[subject]
    async with running_bridge(own) as running:
        port = URL(running.listening.operator_url).port
        itself = own.model_copy(update={"operator_port": port})
        beside_itself = (await check_results(itself))[subject]
        one_too_many = (await check_results(own))[subject]
        kept_out = (await check_results(shared))[subject]
    async with (
        RedisServer.start(tmp_path, is_durable=False) as redis,
        running_bridge(settings(managed_broker, namespace, inbox=redis.url)),
    ):
        stray = (await check_results(own))[subject]
        one_more = (await check_results(shared))[subject]

    for result in (without_others, beside_itself, one_more):
        assert result.status is CheckStatus.OK, result
    assert beside_itself.text == "the running bridge is the only consumer"
    for result in (kept_out, one_too_many, stray):
        assert result.status is CheckStatus.WARN, result
        assert "inbox of its own" in result.text
        assert "BRIDGE_NAMESPACE" in result.fix


async def test_the_fix_of_a_refused_login_tests_the_password(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """The broker is reachable, so its listeners are not the problem."""
    url = URL(managed_broker.node.url).with_password("wr0ng")

    [refused] = failed(
        await check_results(settings(managed_broker, namespace, url))
    ).values()

    assert "login refused" in refused.text
    assert f"rabbitmqctl authenticate_user {url.user}" in refused.fix


@pytest.mark.parametrize("is_new", [True, False])
async def test_missing_permissions_are_found_and_the_suggested_command_grants_them(
    managed_broker: ManagedBroker, namespace: str, is_new: bool
) -> None:
    """Before the first start the probes must not create a queue; later the queues exist."""
    if not is_new:
        await declare_all(managed_broker, namespace)
    url = await managed_broker.add_user(
        "poor", rf"^{namespace}\.", rf"^{namespace}\.(inbound|retry)", "^$"
    )
    chosen = settings(managed_broker, namespace, url)

    lacking = failed(await check_results(chosen))["permissions of poor"]
    exchanges = (
        "dead",
        "unrouted",
        "events",
        "control",
        "messages.fallback",
        "messages",
    )
    unwritable = ", ".join(f"{namespace}.{name}" for name in exchanges)
    assert f"no write on {unwritable};" in lacking.text
    assert f"{namespace}.inbound.0" in lacking.text.partition("no read on")[2]

    # rabbitmqctl set_permissions --vhost / poor CONFIGURE WRITE READ
    *command, user, configure, write, read = shlex.split(lacking.fix, comments=True)
    assert command == ["rabbitmqctl", "set_permissions", "--vhost", "/"]
    await managed_broker.set_permissions(user, configure, write, read)
    granted = await check_results(chosen)
    assert failed(granted) == {}
    assert granted["receipts"].text.startswith(
        f"go to {namespace}.events, and not to the `reply_to` of a message: no write"
    )


async def test_a_user_without_any_permission_is_shown_all_of_them(
    managed_broker: ManagedBroker, declared: BrokerNames
) -> None:
    """One check lists every missing right."""
    url = await managed_broker.add_user("powerless", "^$", "^$", "^$")

    results = await check_results(settings(managed_broker, declared.namespace, url))

    text = results["permissions of powerless"].text
    for right in ("configure", "write", "read"):
        assert f"no {right} on " in text
        assert declared.dead in text.partition(f"no {right} on ")[2].partition(";")[0]


async def test_a_changed_queue_argument_and_a_lost_binding_are_found(
    managed_broker: ManagedBroker, declared: BrokerNames
) -> None:
    """Both happen when an operator changes queues by hand."""
    retry = declared.retry_queue(1000)
    async with open_raw(managed_broker.node.url) as raw:
        await raw.channel.queue_delete(retry)
        await raw.channel.queue_declare(
            retry,
            durable=True,
            arguments={"x-queue-type": "quorum", "x-message-ttl": 5},
        )
        await raw.channel.queue_unbind(declared.dead, declared.dead)

    found = failed(await check_results(settings(managed_broker, declared.namespace)))

    assert set(found) == {f"queue {retry}", "bindings"}
    assert "has x-" in found[f"queue {retry}"].text
    assert found[f"queue {retry}"].fix == (
        f"rabbitmqctl delete_queue --vhost / --if-empty {retry}"
    )
    assert found["bindings"].text.startswith(
        f"missing: {declared.dead} to queue {declared.dead}, {retry} to queue {retry};"
    )


async def test_a_policy_that_contradicts_the_topology_is_named(
    managed_broker: ManagedBroker, declared: BrokerNames
) -> None:
    """A policy changes queues without any change of the queues."""
    policy = {
        "pattern": rf"^{declared.namespace}\.inbound",
        "apply-to": "queues",
        "definition": {"message-ttl": 1000},
    }
    path = f"policies/%2F/{declared.namespace}"
    await managed_broker.ask("PUT", path, policy)
    try:
        found = failed(
            await check_results(settings(managed_broker, declared.namespace))
        )
    finally:
        await managed_broker.ask("DELETE", path)

    subject = f"policy {declared.namespace} on queue {declared.inbound_queue()}"
    assert set(found) == {subject}
    assert found[subject].fix == (
        f"rabbitmqctl clear_policy --vhost / {declared.namespace}"
    )


async def test_without_the_management_api_its_checks_are_skipped(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """A skipped check is neither a failure nor a success."""
    plain = settings(managed_broker, namespace).model_copy(
        update={"management_url": None}
    )
    refused = str(managed_broker.url.with_password("wrong"))
    away = "http://127.0.0.1:1/"
    no_api = str(managed_broker.url.with_port(URL(managed_broker.node.url).port or 0))

    for chosen, words in (
        (plain, "need the management API"),
        (settings(managed_broker, namespace, management_url=refused), "tag management"),
        (settings(managed_broker, namespace, management_url=away), "cannot be reached"),
        (
            settings(managed_broker, namespace, management_url=no_api),
            "cannot be reached",
        ),
    ):
        results = await check_results(chosen)
        result = results["policies, bindings and clock"]
        assert result.status is CheckStatus.SKIP
        assert words in result.text
        assert "wrong:" not in result.text
        assert failed(results) == {}


async def test_a_running_bridge_reports_readiness_and_refused_origins(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """A page of a missing origin just shows nothing; the cause is visible here only."""
    chosen = settings(managed_broker, namespace)
    async with running_bridge(chosen) as running:
        port = URL(running.listening.operator_url).port
        here = chosen.model_copy(update={"operator_port": port})
        before = await check_results(here)
        evil = "https://evil.example/\u202e"
        await connect_from(running.listening.public_url, evil)
        await eventually(
            lambda: running.sample(
                "bridge_windows_refused_total", code="origin_not_allowed"
            )
        )
        after = await check_results(here)
    gone = await check_results(here)

    assert before["running bridge"].text == "is ready"
    assert before["origins"].status is CheckStatus.OK
    assert after["origins"].status is CheckStatus.WARN
    assert after["origins"].text.startswith(
        "windows refused for their origin since the bridge started: 1;"
    )
    assert r"'https://evil.example/\u202e' (1, last 20" in after["origins"].text
    assert gone["running bridge"].status is CheckStatus.SKIP


async def test_a_running_bridge_reports_a_proxy_whose_header_cannot_be_read(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """All visitors count as one address, so that the limit per address refuses them."""
    chosen = settings(managed_broker, namespace, trusted_proxies="127.0.0.1")
    async with running_bridge(chosen) as running, aiohttp.ClientSession() as session:
        port = URL(running.listening.operator_url).port
        here = chosen.model_copy(update={"operator_port": port})
        before = await check_results(here)
        polling = f"{running.listening.public_url}/socket.io/?EIO=4&transport=polling"
        async with session.get(polling, headers={"X-Forwarded-For": "unknown"}) as page:
            assert page.status == 200
        after = await check_results(here)

    assert "X-Forwarded-For" not in before
    found = after["X-Forwarded-For"]
    assert found.status is CheckStatus.WARN
    assert found.text.startswith("1 requests of BRIDGE_TRUSTED_PROXIES")


@pytest.mark.parametrize("algorithms", ["", "RS256", "HS256"])
async def test_an_unreachable_key_set_counts_as_an_unreachable_peer(
    managed_broker: ManagedBroker, namespace: str, algorithms: str
) -> None:
    """Without the key set no window can connect, whatever the accepted algorithms."""
    chosen = settings(
        managed_broker,
        namespace,
        jwt_algorithms=algorithms,
        jwks_url="http://127.0.0.1:1/keys",
    )

    result = (await check_results(chosen))["key set"]

    assert result.exit_code == ExitCode.UNREACHABLE


async def test_a_large_answer_of_the_management_api_is_read_completely() -> None:
    """A vhost may have thousands of bindings, which arrive in several chunks."""
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


async def test_a_key_set_needs_a_key_for_each_accepted_algorithm(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """A key set can be reachable and still fit no token."""
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    keys = {"keys": [ECAlgorithm.to_jwk(public, as_dict=True) | {"kid": "1"}]}

    async def serve(_request: web.Request) -> web.Response:
        return web.json_response(keys)

    app = web.Application()
    app.router.add_get("/keys", serve)
    async with TestServer(app, host="127.0.0.1") as server:
        for algorithms, status, words in (
            ("ES256", CheckStatus.OK, "1 for ES256"),
            ("", CheckStatus.OK, "keys: 1 for ES256"),
            ("ES256,RS256", CheckStatus.FAIL, "no key for RS256"),
            ("HS256", CheckStatus.WARN, "is not used"),
        ):
            chosen = settings(
                managed_broker,
                namespace,
                jwt_algorithms=algorithms,
                jwks_url=str(server.make_url("/keys")),
            )
            result = await check_key_set(chosen)
            assert result is not None
            assert result.status is status
            assert words in result.text


async def test_an_unready_bridge_is_distinguished_from_another_program(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """The operator token is sent to a bridge only."""
    away = settings(managed_broker, namespace, URL("amqp://127.0.0.1:1/"))
    async with running_bridge(away, until_ready=False) as running:
        port = URL(running.listening.operator_url).port
        here = away.model_copy(update={"operator_port": port})
        ours = await check_running_bridge(here)
    elsewhere = away.model_copy(update={"operator_port": managed_broker.url.port})
    (other,) = await check_running_bridge(elsewhere)

    assert ours[0].status is CheckStatus.FAIL
    assert ours[0].text.startswith(
        "is not ready: nothing is consumed from the broker: "
    )
    assert (other.subject, other.status) == ("running bridge", CheckStatus.SKIP)
    assert "another program listens" in other.text


async def connect_from(url: str, origin: str) -> None:
    """Connect as a page of another site does, and read the refusal."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"{url}/socket.io/?EIO=4&transport=websocket", origin=origin
        ) as page,
    ):
        await page.receive()
        await page.send_str('40{"token":"x"}')
        await page.receive()
