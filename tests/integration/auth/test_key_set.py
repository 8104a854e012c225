"""A key set served by a real server, which rotates, redirects, floods, hangs and dies."""

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bridge.app import Bridge
from bridge.auth.jwt import TokenRules, TokenVerifier
from bridge.auth.key_set import KeySet, KeySetTimes
from bridge.enums import Refusal
from bridge.errors import KeysUnavailableError, RefusedError
from bridge.settings.load import load_settings
from tests.clock import Clock
from tests.conftest import eventually
from tests.integration.auth.issuer import (
    NEW_KEY,
    OLD_KEY,
    Answer,
    Hold,
    Issuer,
    token,
)

RULES = TokenRules(algorithms=("ES256",))


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """Serve the old key under the name `old`."""
    server = Issuer(keys={"old": OLD_KEY})
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def clock() -> Clock:
    """Start anywhere: only differences count."""
    return Clock()


@contextlib.asynccontextmanager
async def opened(
    issuer: Issuer, clock: Clock, *, fetch_s: float = 5.0
) -> AsyncIterator[TokenVerifier]:
    key_set = KeySet(issuer.url, times=KeySetTimes(fetch_s=fetch_s), now=clock)
    verifier = TokenVerifier(RULES, key_set)
    await verifier.open()
    try:
        yield verifier
    finally:
        await verifier.close()


async def unavailable(verifier: TokenVerifier) -> str:
    """Verify a good token, which must fail for want of keys; return the text."""
    with pytest.raises(KeysUnavailableError) as caught:
        await verifier.verify(token(OLD_KEY, "old"))
    return str(caught.value)


# --- keys that are there ----------------------------------------------------------------


async def test_tokens_are_checked_with_one_fetch_for_all(
    issuer: Issuer, clock: Clock
) -> None:
    """A storm of connections must not become a storm on the issuer."""
    async with opened(issuer, clock) as verifier:
        for _ in range(20):
            assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"

    assert issuer.asked == 1


async def test_a_token_without_kid_is_tried_with_the_keys_that_fit(
    issuer: Issuer, clock: Clock
) -> None:
    """Small issuers name neither key nor token."""
    issuer.keys = {"new": NEW_KEY, "old": OLD_KEY}

    async with opened(issuer, clock) as verifier:
        assert (await verifier.verify(token(OLD_KEY, None))).user == "alice"


async def test_a_kid_selects_the_key_and_no_other_is_tried(
    issuer: Issuer, clock: Clock
) -> None:
    """A signature by another key of the set is not what the token claims."""
    issuer.keys = {"new": NEW_KEY, "old": OLD_KEY}

    async with opened(issuer, clock) as verifier:
        with pytest.raises(RefusedError) as caught:
            await verifier.verify(token(OLD_KEY, "new"))

    assert caught.value.code is Refusal.TOKEN_INVALID


async def test_a_rotated_key_is_found_by_asking_once_more(
    issuer: Issuer, clock: Clock
) -> None:
    """Issuers rotate without notice; users must not wait for a cache to run out."""
    async with opened(issuer, clock) as verifier:
        issuer.keys = {"new": NEW_KEY}
        clock.now_s += 11

        assert (await verifier.verify(token(NEW_KEY, "new"))).user == "alice"
        with pytest.raises(RefusedError):
            await verifier.verify(token(OLD_KEY, "old"))

    assert issuer.asked == 2


async def test_unknown_kids_make_at_most_one_fetch_in_ten_seconds(
    issuer: Issuer, clock: Clock
) -> None:
    """Anybody can make up kids: they must not turn the bridge against its issuer."""
    async with opened(issuer, clock) as verifier:
        for made_up in range(50):
            clock.now_s += 0.5
            with pytest.raises(RefusedError) as caught:
                await verifier.verify(token(NEW_KEY, f"kid-{made_up}"))
            assert caught.value.code is Refusal.TOKEN_INVALID

    assert issuer.asked == 1 + 2


async def test_a_withdrawn_key_stops_serving_when_the_set_is_old(
    issuer: Issuer, clock: Clock
) -> None:
    """This is how an issuer takes back a key that was stolen."""
    async with opened(issuer, clock) as verifier:
        await verifier.verify(token(OLD_KEY, "old"))
        issuer.keys = {"new": NEW_KEY}
        clock.now_s += 301

        with pytest.raises(RefusedError):
            await verifier.verify(token(OLD_KEY, "old"))


async def test_verifications_share_one_fetch(issuer: Issuer, clock: Clock) -> None:
    """After an outage all windows come back in the same second."""
    hold = Hold(then=issuer.serve)

    async with opened(issuer, clock) as verifier:
        issuer.keys = {"new": NEW_KEY}
        issuer.answer = hold
        clock.now_s += 3601
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            waiting = [
                tasks.create_task(verifier.verify(token(NEW_KEY, "new")))
                for _ in range(30)
            ]
            await hold.asked.wait()
            hold.released.set()

    assert [task.result().user for task in waiting] == ["alice"] * 30
    assert issuer.asked == 2  # when it was opened, and once for the thirty


async def test_others_go_on_with_the_old_set_while_one_fetches_the_new(
    issuer: Issuer, clock: Clock
) -> None:
    """A slow issuer delays one window at most, not every one."""
    hold = Hold()

    async with opened(issuer, clock) as verifier:
        issuer.answer = hold
        clock.now_s += 301
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(verifier.verify(token(OLD_KEY, "old")))
            await hold.asked.wait()

            assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"
            assert not first.done()
            hold.released.set()

        assert first.result().user == "alice"


async def test_a_window_that_gives_up_does_not_take_the_fetch_from_others(
    issuer: Issuer, clock: Clock
) -> None:
    """The one that happens to fetch may be closed at any moment."""
    hold = Hold()

    async with opened(issuer, clock) as verifier:
        issuer.answer = hold
        clock.now_s += 3601
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(verifier.verify(token(OLD_KEY, "old")))
            await hold.asked.wait()
            second = tasks.create_task(verifier.verify(token(OLD_KEY, "old")))
            issuer.answer = None
            first.cancel()
            hold.released.set()

    assert first.cancelled()
    assert second.result().user == "alice"


# --- keys that cannot be had ------------------------------------------------------------


async def test_a_server_that_is_down_at_the_start_is_asked_again_later(
    issuer: Issuer, clock: Clock
) -> None:
    """The bridge starts anyway: whoever comes later must get in."""
    await issuer.stop()

    async with opened(issuer, clock) as verifier:
        assert "cannot be had: ClientConnectorError" in await unavailable(verifier)
        await issuer.start()
        assert await unavailable(verifier)  # not asked again yet
        clock.now_s += 11
        assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"


async def test_known_keys_serve_for_an_hour_while_the_server_is_down(
    issuer: Issuer, clock: Clock
) -> None:
    """An outage of the issuer must not become one of ours at once, nor last for ever."""
    async with opened(issuer, clock) as verifier:
        await issuer.stop()

        clock.now_s += 3599
        assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"
        clock.now_s += 11
        await unavailable(verifier)

        await issuer.start()
        clock.now_s += 11
        assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"


async def test_an_unknown_kid_while_the_server_is_down_may_come_again(
    issuer: Issuer, clock: Clock
) -> None:
    """Nobody can say that the token is bad: its key may be new."""
    async with opened(issuer, clock) as verifier:
        await issuer.stop()
        clock.now_s += 11

        with pytest.raises(KeysUnavailableError):
            await verifier.verify(token(NEW_KEY, "new"))


async def redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound(request.url.with_path("/elsewhere"))


async def flood(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):  # the bridge hangs up
        for _ in range(10_000):
            await response.write(b" " * 65536)
    return response


async def zipped(_: web.Request) -> web.StreamResponse:
    response = web.Response(body=b"[" * 5_000_000)
    response.enable_compression(web.ContentCoding.gzip)
    return response


async def html(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<h1>Please log in</h1>", content_type="text/html")


async def no_keys(_: web.Request) -> web.StreamResponse:
    return web.json_response({"keys": []})


async def failing(_: web.Request) -> web.StreamResponse:
    return web.json_response({"keys": []}, status=503)


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"keys"')
    assert request.transport
    request.transport.abort()
    return response


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (redirect, "status 302, expected 200"),
        (flood, "larger than 1048576 bytes"),
        (zipped, "not JSON"),
        (html, "not JSON"),
        (no_keys, "none of its 0 keys"),
        (failing, "status 503, expected 200"),
        (cut, "ClientPayloadError"),
    ],
)
async def test_a_bad_answer_is_told_and_gone_when_the_next_is_good(
    issuer: Issuer, clock: Clock, answer: Answer, problem: str
) -> None:
    """No redirect is followed: it could lead to any address that the bridge can reach."""
    issuer.answer = answer
    with capture_logs() as logs:
        async with opened(issuer, clock) as verifier:
            assert problem in await unavailable(verifier)
            issuer.answer = None
            clock.now_s += 11
            assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"

    events = [line["event"] for line in logs]
    assert events == ["keys.unavailable", "keys.changed"]
    assert problem in logs[0]["problem"]


async def test_a_bad_answer_leaves_the_known_keys_in_force(
    issuer: Issuer, clock: Clock
) -> None:
    """An issuer that answers nonsense is as good as one that is down."""
    async with opened(issuer, clock) as verifier:
        issuer.answer = html
        clock.now_s += 301

        assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"


async def test_a_server_that_hangs_is_given_up_at_the_deadline(
    issuer: Issuer, clock: Clock
) -> None:
    """A window must not wait for ever because the issuer does."""
    hold = Hold()
    issuer.answer = hold

    async with opened(issuer, clock, fetch_s=0.05) as verifier:
        assert "no answer within 0.05 s" in await unavailable(verifier)
        hold.released.set()


async def test_no_password_of_the_url_is_told(clock: Clock) -> None:
    """The URL may hold one, and both log and error travel far."""
    server = Issuer(url="http://user:hunter2@127.0.0.1:1/keys")

    with capture_logs() as logs:
        async with opened(server, clock) as verifier:
            told = await unavailable(verifier)

    assert "hunter2" not in told
    assert "hunter2" not in str(logs)


async def test_a_key_set_that_is_closed_says_so_and_closes_twice(clock: Clock) -> None:
    """A window may still be connecting while the bridge goes down."""
    verifier = TokenVerifier(RULES, KeySet("http://127.0.0.1:1/keys", now=clock))
    await verifier.close()
    await verifier.close()

    assert "not open" in await unavailable(verifier)


async def test_a_start_that_is_broken_off_leaves_no_connection_to_the_issuer(
    issuer: Issuer,
) -> None:
    """The second Ctrl-C, while keys are on their way."""

    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    issuer.answer = hang
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        settings = await asyncio.to_thread(
            load_settings,
            {
                "amqp_url": "amqp://127.0.0.1:1/",
                "jwt_algorithms": "ES256",
                "jwks_url": issuer.url,
                "inbox": "memory:",
            },
        )
        bridge = await asyncio.to_thread(Bridge, settings)  # it reads files
        running = asyncio.create_task(
            bridge.run(asyncio.Event(), on_listening=lambda _: None)
        )
        await eventually(lambda: issuer.asked == 1)
        running.cancel()
        await asyncio.wait({running})
        del bridge, running
        gc.collect()

    assert [str(each.message) for each in warned] == []
