"""Guessing keys on both ports of a running bridge, and the host names it answers to."""

from itertools import count
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from tests.integration.running import (
    OPERATOR_TOKEN,
    RunningBridge,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

API_KEY = "api-key-of-the-tests"
_GUESSES = count()


def guess() -> str:
    """Return a key that no test has tried."""
    return f"guess-number-{next(_GUESSES)}"


async def status(running: RunningBridge, way: str, key: str) -> int:
    """Present `key` in one of the ways that a bridge accepts."""
    operator, public = running.listening.operator_url, running.listening.public_url
    method, url, options = {
        "metrics": ("GET", f"{operator}/metrics", {"headers": {"X-API-Key": key}}),
        "api": ("GET", f"{operator}/api/users", bearer(key)),
        "publish": ("POST", f"{operator}/api/publish", bearer(key)),
        "legacy": ("GET", f"{public}/?name=ann&msg=x", bearer(key)),
        "sign-in": (
            "POST",
            f"{operator}/console/session",
            {"json": {"token": key}, "headers": {"X-Bridge-Console": "1"}},
        ),
    }[way]
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, **options) as response,  # type: ignore[arg-type]
    ):
        assert response.status != 429 or int(response.headers["Retry-After"]) > 0
        return response.status


def bearer(key: str) -> dict[str, object]:
    """Return the options of a request with `key`."""
    return {"headers": {"Authorization": f"Bearer {key}"}}


WAYS = ("metrics", "api", "publish", "legacy", "sign-in")


@pytest.mark.parametrize("way", WAYS)
async def test_wrong_keys_lead_to_pauses_in_every_way_to_present_one(
    broker: LocalNode, namespace: str, way: str
) -> None:
    """A guesser would otherwise use the way without a limit, thousands of times a second."""
    settings = settings_for(broker, namespace, api_key=API_KEY, legacy_push="true")
    async with running_bridge(settings) as running:
        guesses = [guess() for _ in range(8)]
        with capture_logs() as logs:
            answers = [await status(running, way, each) for each in guesses]

        assert answers == [401] * 5 + [429] * 3
        for other in WAYS:  # the right key has to wait, too, in every way
            assert await status(running, other, OPERATOR_TOKEN) == 429
        sample = running.sample
        assert sample("bridge_keys_refused_total", outcome="wrong") == 5
        assert sample("bridge_keys_refused_total", outcome="paused") == 3 + len(WAYS)
        refused = [line for line in logs if line["event"] == "http.key_refused"]
        assert [line["address"] for line in refused] == ["127.0.0.1"] * 5
        assert not any(each in str(logs) for each in guesses)


async def test_wrong_keys_lead_to_pauses_on_a_unix_socket_by_the_address_of_the_client(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """All requests of a proxy arrive there; only the supervisor of workers is exempt."""
    settings = settings_for(
        broker, namespace, operator_host=f"unix:{tmp_path}/operator"
    )
    async with (
        running_bridge(settings),
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(f"{tmp_path}/operator")
        ) as session,
    ):

        async def answer(key: str, client: str | None) -> int:
            headers = {"X-API-Key": key}
            if client is not None:
                headers["X-Forwarded-For"] = client
            async with session.get("http://localhost/metrics", headers=headers) as got:
                return got.status

        for client in ("203.0.113.9", None):  # None: a program on this machine
            answers = [await answer(guess(), client) for _ in range(8)]

            assert answers == [401] * 5 + [429] * 3
            assert await answer(OPERATOR_TOKEN, client) == 429
        assert await answer(OPERATOR_TOKEN, "203.0.113.10") == 200


async def test_a_program_with_an_old_key_does_not_lock_out_its_neighbors(
    broker: LocalNode, namespace: str
) -> None:
    """A scraper that repeats a key guesses nothing; operators on its machine may work."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        old = guess()
        answers = [await status(running, "metrics", old) for _ in range(7)]

        assert answers == [401] * 5 + [429] * 2
        assert await status(running, "api", OPERATOR_TOKEN) == 200


async def test_a_producer_cannot_guess_the_operator_token_between_its_publishes(
    broker: LocalNode, namespace: str
) -> None:
    """Its right key would otherwise reset the count of the wrong ones."""
    settings = settings_for(broker, namespace, api_key=API_KEY)
    async with running_bridge(settings) as running:
        for _ in range(4):
            assert await status(running, "api", guess()) == 401
        assert await status(running, "publish", API_KEY) == 400  # no body
        assert await status(running, "api", guess()) == 401

        assert await status(running, "api", guess()) == 429


async def test_a_new_key_in_the_settings_ends_the_pauses(
    broker: LocalNode, namespace: str
) -> None:
    """During a rotation, clients may present the new key before the bridge knows it."""
    settings = settings_for(broker, namespace)
    new = "the-next-operator-token"
    async with running_bridge(settings) as running:
        for _ in range(6):
            await status(running, "api", new)
        await running.bridge.reload(
            settings_for(broker, namespace, operator_token=new, port=0)
        )

        assert await status(running, "api", new) == 200


@pytest.mark.parametrize(
    ("host", "is_served"),
    [
        ("localhost:1", True),
        ("[::1]:8081", True),
        ("ops.example.org", True),
        ("OPS.example.org:443", True),
        ("evil.example", False),
        ("evil.example:8081", False),
        ("127.0.0.1.evil.example", False),
        ("ops.example.org.evil.example", False),
        ("ops.example.org@evil.example", False),
    ],
)
async def test_on_loopback_only_known_host_names_are_served(
    broker: LocalNode, namespace: str, host: str, *, is_served: bool
) -> None:
    """Any domain can resolve to 127.0.0.1, and its pages would have the bridge's origin."""
    settings = settings_for(
        broker, namespace, operator_allowed_hosts="ops.example.org, other.example"
    )
    async with running_bridge(settings) as running, aiohttp.ClientSession() as session:
        root = running.listening.operator_url
        for path in ("/console", "/console/session", "/api/users", "/metrics"):
            headers = {"Host": host, "X-API-Key": OPERATOR_TOKEN}
            async with session.get(root + path, headers=headers) as response:
                assert response.status == (200 if is_served else 421)
                if not is_served:
                    assert "BRIDGE_OPERATOR_ALLOWED_HOSTS" in await response.text()
        # Probes of load balancers send any name; the public port answers the same.
        async with session.get(f"{root}/health/ready", headers={"Host": host}) as probe:
            assert probe.status == 200
