"""A key set on a real server that rotates, redirects, floods, hangs and stops."""

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
    BlockedAnswer,
    Issuer,
    token,
)

RULES = TokenRules(algorithms=("ES256",))


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """Serve the old key with the kid `old`."""
    server = Issuer(keys={"old": OLD_KEY})
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def clock() -> Clock:
    """Return a clock that the test moves."""
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
    """Verify a valid token without a usable key set; return the text of the error."""
    with pytest.raises(KeysUnavailableError) as caught:
        await verifier.verify(token(OLD_KEY, "old"))
    return str(caught.value)


async def refused(verifier: TokenVerifier, unaccepted: str) -> Refusal:
    """Verify a token that is not accepted; return the code that a page receives."""
    try:
        await verifier.verify(unaccepted)
    except RefusedError as exc:
        return exc.code
    except KeysUnavailableError:
        return Refusal.KEYS_UNAVAILABLE
    raise AssertionError(unaccepted)


# --- available keys ---------------------------------------------------------------------


async def test_many_tokens_need_one_fetch(issuer: Issuer, clock: Clock) -> None:
    """Many connects must not become many requests to the issuer."""
    async with opened(issuer, clock) as verifier:
        for _ in range(20):
            assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"

    assert issuer.requests == 1


async def test_a_token_without_kid_is_tried_with_all_keys_of_its_algorithm(
    issuer: Issuer, clock: Clock
) -> None:
    """Small issuers use no kid."""
    issuer.keys = {"new": NEW_KEY, "old": OLD_KEY}

    async with opened(issuer, clock) as verifier:
        assert (await verifier.verify(token(OLD_KEY, None))).user == "alice"


async def test_a_token_with_kid_is_tried_with_that_key_only(
    issuer: Issuer, clock: Clock
) -> None:
    """A signature by another key of the set contradicts the header."""
    issuer.keys = {"new": NEW_KEY, "old": OLD_KEY}

    async with opened(issuer, clock) as verifier:
        with pytest.raises(RefusedError) as caught:
            await verifier.verify(token(OLD_KEY, "new"))

    assert caught.value.code is Refusal.TOKEN_INVALID


async def test_a_rotated_key_is_found_by_another_fetch(
    issuer: Issuer, clock: Clock
) -> None:
    """Issuers rotate without notice; users must not wait until the cache expires."""
    async with opened(issuer, clock) as verifier:
        issuer.keys = {"new": NEW_KEY}
        clock.now_s += 11

        assert (await verifier.verify(token(NEW_KEY, "new"))).user == "alice"
        clock.now_s += 11
        with pytest.raises(RefusedError):
            await verifier.verify(token(OLD_KEY, "old"))

    assert issuer.requests == 3


@pytest.mark.parametrize("kid", ["new", None])
async def test_a_key_that_rotated_just_after_a_fetch_is_unavailable_and_then_found(
    issuer: Issuer, clock: Clock, kid: str | None
) -> None:
    """A page whose token is invalid never tries again, and the token is valid."""
    async with opened(issuer, clock) as verifier:
        issuer.keys = {"new": NEW_KEY}

        clock.now_s += 9
        with pytest.raises(KeysUnavailableError):
            await verifier.verify(token(NEW_KEY, kid))
        clock.now_s += 2
        assert (await verifier.verify(token(NEW_KEY, kid))).user == "alice"

    assert issuer.requests == 2


@pytest.mark.parametrize("kid", ["new", None])
async def test_a_key_that_rotated_during_a_fetch_is_not_invalid(
    issuer: Issuer, clock: Clock, kid: str | None
) -> None:
    """The answer of a fetch that began before the token came may be too old."""
    blocked = BlockedAnswer(then=issuer.serve)

    async with opened(issuer, clock) as verifier:
        issuer.answer = blocked
        clock.now_s += 11
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(refused(verifier, token(NEW_KEY, "other")))
            await blocked.asked.wait()
            second = tasks.create_task(refused(verifier, token(NEW_KEY, kid)))
            await asyncio.sleep(0)
            blocked.released.set()

    assert first.result() is Refusal.TOKEN_INVALID
    assert second.result() is Refusal.KEYS_UNAVAILABLE


async def test_unknown_kids_cause_at_most_one_fetch_in_ten_seconds(
    issuer: Issuer, clock: Clock
) -> None:
    """Any client can invent kids, which must not make the bridge flood its issuer."""
    async with opened(issuer, clock) as verifier:
        codes = []
        for number in range(50):
            clock.now_s += 0.5
            codes.append(await refused(verifier, token(NEW_KEY, f"kid-{number}")))

    assert issuer.requests == 1 + 2
    assert codes.count(Refusal.TOKEN_INVALID) == 2  # those whose kid was looked up
    assert codes.count(Refusal.KEYS_UNAVAILABLE) == 48


async def test_a_withdrawn_key_is_refused_once_the_set_is_stale(
    issuer: Issuer, clock: Clock
) -> None:
    """An issuer withdraws a stolen key this way."""
    async with opened(issuer, clock) as verifier:
        await verifier.verify(token(OLD_KEY, "old"))
        issuer.keys = {"new": NEW_KEY}
        clock.now_s += 301

        with pytest.raises(RefusedError):
            await verifier.verify(token(OLD_KEY, "old"))


async def test_a_known_token_of_a_withdrawn_key_is_refused_once_the_set_is_stale(
    issuer: Issuer, clock: Clock
) -> None:
    """A token that was verified before must not outlive the key that signed it."""
    known = token(OLD_KEY, "old")
    async with opened(issuer, clock) as verifier:
        await verifier.verify(known)
        issuer.keys = {"old": NEW_KEY}  # the same name
        await verifier.verify(known)

        clock.now_s += 301

        assert await refused(verifier, known) is Refusal.TOKEN_INVALID
    assert issuer.requests == 2


async def test_a_known_token_needs_keys_that_are_not_too_old(
    issuer: Issuer, clock: Clock
) -> None:
    """Without its issuer, a bridge cannot know whether the key is still valid."""
    known = token(OLD_KEY, "old")
    async with opened(issuer, clock) as verifier:
        await verifier.verify(known)
        await issuer.stop()

        clock.now_s += 3599
        assert (await verifier.verify(known)).user == "alice"
        clock.now_s += 11
        assert await refused(verifier, known) is Refusal.KEYS_UNAVAILABLE


async def test_rules_that_are_replaced_during_a_fetch_know_no_earlier_token(
    issuer: Issuer, clock: Clock
) -> None:
    """A token that was verified by the old rules may be invalid by the new ones."""
    waiting = token(NEW_KEY, "new")
    async with opened(issuer, clock) as verifier:
        clock.now_s += 11
        issuer.keys = {"new": NEW_KEY}
        blocked = issuer.answer = BlockedAnswer(then=issuer.serve)
        task = asyncio.create_task(verifier.verify(waiting))
        await blocked.asked.wait()

        verifier.replace_rules(TokenRules(algorithms=("ES256",), issuer="us"))
        blocked.released.set()

        assert (await task).user == "alice"
        assert await refused(verifier, waiting) is Refusal.TOKEN_INVALID


async def test_verifications_share_one_fetch(issuer: Issuer, clock: Clock) -> None:
    """After an outage, all windows reconnect in the same second."""
    blocked = BlockedAnswer(then=issuer.serve)

    async with opened(issuer, clock) as verifier:
        issuer.keys = {"new": NEW_KEY}
        issuer.answer = blocked
        clock.now_s += 3601
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            waiting = [
                tasks.create_task(verifier.verify(token(NEW_KEY, "new")))
                for _ in range(30)
            ]
            await blocked.asked.wait()
            blocked.released.set()

    assert [task.result().user for task in waiting] == ["alice"] * 30
    assert issuer.requests == 2  # at open, and one for the thirty tokens


async def test_other_tokens_use_the_old_set_while_one_fetches(
    issuer: Issuer, clock: Clock
) -> None:
    """A slow issuer delays at most one window."""
    blocked = BlockedAnswer()

    async with opened(issuer, clock) as verifier:
        issuer.answer = blocked
        clock.now_s += 301
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(verifier.verify(token(OLD_KEY, "old")))
            await blocked.asked.wait()

            assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"
            assert not first.done()
            blocked.released.set()

        assert first.result().user == "alice"


async def test_a_cancelled_fetch_is_repeated_for_the_other_tokens(
    issuer: Issuer, clock: Clock
) -> None:
    """The window whose token started the fetch may be closed at any moment."""
    blocked = BlockedAnswer()

    async with opened(issuer, clock) as verifier:
        issuer.answer = blocked
        clock.now_s += 3601
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(verifier.verify(token(OLD_KEY, "old")))
            await blocked.asked.wait()
            second = tasks.create_task(verifier.verify(token(OLD_KEY, "old")))
            issuer.answer = None
            first.cancel()
            blocked.released.set()

    assert first.cancelled()
    assert second.result().user == "alice"


# --- unavailable keys -------------------------------------------------------------------


async def test_a_server_that_is_down_at_the_start_is_tried_again(
    issuer: Issuer, clock: Clock
) -> None:
    """The bridge starts anyway, and accepts tokens once the server is up."""
    await issuer.stop()

    async with opened(issuer, clock) as verifier:
        assert "cannot be fetched: connection refused" in await unavailable(verifier)
        await issuer.start()
        assert await unavailable(verifier)  # no second fetch yet
        clock.now_s += 11
        assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"


async def test_known_keys_are_used_for_an_hour_while_the_server_is_down(
    issuer: Issuer, clock: Clock
) -> None:
    """A short outage of the issuer has no effect, and stolen keys still expire."""
    async with opened(issuer, clock) as verifier:
        await issuer.stop()

        clock.now_s += 3599
        assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"
        clock.now_s += 11
        await unavailable(verifier)

        await issuer.start()
        clock.now_s += 11
        assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"


async def test_an_unknown_kid_is_not_invalid_while_the_server_is_down(
    issuer: Issuer, clock: Clock
) -> None:
    """The key may be new, so the page should try again."""
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
    with contextlib.suppress(ConnectionResetError):  # the bridge closes the connection
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
        (cut, "the other side closed the connection"),
    ],
)
async def test_a_bad_answer_is_logged_and_a_later_one_is_used(
    issuer: Issuer, clock: Clock, answer: Answer, problem: str
) -> None:
    """A redirect is not followed: it could lead to any address that the bridge can reach."""
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
    """A server that answers with an error page counts as unavailable."""
    async with opened(issuer, clock) as verifier:
        issuer.answer = html
        clock.now_s += 301

        assert (await verifier.verify(token(OLD_KEY, "old"))).user == "alice"


async def test_a_fetch_that_hangs_ends_at_its_timeout(
    issuer: Issuer, clock: Clock
) -> None:
    """A window must not wait forever for a slow issuer."""
    blocked = BlockedAnswer()
    issuer.answer = blocked

    async with opened(issuer, clock, fetch_s=0.05) as verifier:
        assert "no answer within 0.05 s" in await unavailable(verifier)
        blocked.released.set()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:1/keys", "connection refused; no program listens there"),
        ("https://127.0.0.1:1/keys", "connection refused; no program listens there"),
        ("https://no-such-host.invalid/keys", "no such host; check the name"),
    ],
)
async def test_a_failed_connection_is_explained_in_words(
    clock: Clock, url: str, problem: str
) -> None:
    """The names of the HTTP library's errors are for developers."""
    async with opened(Issuer(url=url), clock) as verifier:
        assert (await unavailable(verifier)).endswith(f": {problem}")


async def test_a_server_that_does_not_speak_tls_is_explained_in_words(
    issuer: Issuer, clock: Clock
) -> None:
    """The wrong scheme or port is a likely mistake in the URL."""
    tls = Issuer(url=issuer.url.replace("http:", "https:"))
    async with opened(tls, clock) as verifier:
        assert "TLS failed: " in await unavailable(verifier)


async def test_a_password_in_the_url_is_never_quoted(clock: Clock) -> None:
    """Logs and errors are seen by many people."""
    server = Issuer(url="http://user:hunter2@127.0.0.1:1/keys")

    with capture_logs() as logs:
        async with opened(server, clock) as verifier:
            text = await unavailable(verifier)

    assert "hunter2" not in text
    assert "hunter2" not in str(logs)


async def test_a_closed_key_set_is_unavailable_and_close_is_idempotent(
    clock: Clock,
) -> None:
    """A window may still be connecting while the bridge shuts down."""
    verifier = TokenVerifier(RULES, KeySet("http://127.0.0.1:1/keys", now=clock))
    await verifier.close()
    await verifier.close()

    assert "not open" in await unavailable(verifier)


async def test_a_cancelled_start_closes_the_connection_to_the_issuer(
    issuer: Issuer,
) -> None:
    """
    A second Ctrl-C can interrupt the fetch of the keys.

    Before the fetch, the start warns of tokens that the issuer signed for others.
    """

    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    issuer.answer = hang
    with warnings.catch_warnings(record=True) as warned, capture_logs() as logs:
        warnings.simplefilter("always")
        settings = await asyncio.to_thread(
            load_settings,
            {
                "amqp_url": "amqp://127.0.0.1:1/",
                "jwks_url": issuer.url,
                "inbox": "memory:",
            },
        )
        bridge = await asyncio.to_thread(Bridge, settings)  # reads files
        running = asyncio.create_task(
            bridge.run(asyncio.Event(), on_listening=lambda _: None)
        )
        await eventually(lambda: issuer.requests == 1)
        running.cancel()
        await asyncio.wait({running})
        del bridge, running
        gc.collect()

    assert [str(each.message) for each in warned] == []
    assert [line["event"] for line in logs] == ["tokens.any_audience"]
