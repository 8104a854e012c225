"""
A connection that is kept: made, watched, and made again after it was lost.

It is there (`link`) or there is a reason why not (`problem`). Who needs it now does not
wait for it: the pump has its own patience, and windows are better told at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Final

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis import admin_scripts as redis_looking_scripts
from bridge.inbox.redis import scripts as redis_scripts
from bridge.inbox.redis.opening import greeting_lost, open_link
from bridge.inbox.redis.protocol import (
    Answer,
    Link,
    LinkLostError,
    Pushed,
    Word,
    is_error,
)
from bridge.inbox.redis.scripts import Script

log = structlog.get_logger(__name__)

CONNECT_S: Final = 5.0
ANSWER_S: Final = 10.0
_SCRIPTS: Final = (*redis_scripts.ALL, *redis_looking_scripts.ALL)
# How long replicas may take to follow. Questions of windows wait behind it.
REPLICAS_MS: Final = 1000
_PING_EACH_S: Final = 2.0
_PAUSE_FIRST_S: Final = 0.05
_PAUSE_MAX_S: Final = 2.0
# A connection that ends sooner was none: it is not made again at once.
_LASTING_S: Final = 1.0

# Answers that say that the server cannot do it now, and that none of it was done.
_AWAY: Final = frozenset(
    {
        *("LOADING", "BUSY", "READONLY", "NOREPLICAS", "OOM", "MISCONF", "MASTERDOWN"),
        *("CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "NOAUTH", "WRONGPASS", "NOPERM"),
        *("DENIED", "UNKILLABLE", "NOSCRIPT", "WRONGTYPE", "NOPROTO"),
    }
)
# Those that have no code of their own. A key is of another node while its slot moves.
_AWAY_TEXTS: Final = ("max number of clients", "AUTH", "a non local key in a cluster")
# As scripts have it, older servers first.
_DENIED_TEXTS: Final = ("executing the script can't", "ACL failure in script")
# After one of these the server is not who it was, or never will do what we need. It has
# forgotten our scripts where somebody said SCRIPT FLUSH; `connect` sends them.
_LEAVE: Final = frozenset(
    {"READONLY", "MOVED", "MASTERDOWN", "NOAUTH", "LOADING", "NOSCRIPT"}
)


class RefusedByRedisError(Exception):
    """The server answered with an error that no waiting mends: a bug, or its limits."""


Find = Callable[[], Awaitable[Host]]
Greet = Callable[[Link], Awaitable[None]]


class KeptLink:
    """
    One kept connection. `run` keeps it; the rest is for users of the connection.

    Attributes:
        link: The connection, ready for use; ``None`` while there is none.
        problem: Why there is none, or why it is of no use.

    """

    def __init__(
        self,
        address: RedisAddress,
        find: Find,
        *,
        pushed: Pushed | None = None,
        greet: Greet | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        """
        Know where to go, and go nowhere yet.

        Args:
            address: How to log in, and how to call it in errors.
            find: Tells where the server is, each time.
            pushed: Takes what the server pushes.
            greet: Does what has to be done on a new connection before it is used.
            lost: Called when a connection was lost.

        """
        self._lost = lost
        self._address = address
        self._find = find
        self._pushed = pushed
        self._greet = greet
        self.link: Link | None = None
        self.problem: str | None = "it is not connected yet"
        self.was_tried = asyncio.Event()
        self._told: str | None = None

    async def run(self) -> None:
        """Keep the connection until cancelled; never raises anything else."""
        try:
            while True:
                link = await self._connect_patiently()
                since_s = monotonic()
                self.link, self.problem = link, None
                self.was_tried.set()
                if self._told is not None:
                    self._told = None
                    log.info("inbox.connected_again", store=str(self._address))
                self.problem = await self._watch(link)
                self.link = None
                self._tell(self.problem)
                if self._lost is not None:
                    self._lost()
                if monotonic() - since_s < _LASTING_S:
                    await asyncio.sleep(_PAUSE_FIRST_S)
        finally:
            if self.link is not None:
                self.link.abort("it was closed")
                self.link = None
            self.problem = "it is closed"

    async def _connect_patiently(self) -> Link:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailableError),
            wait=wait_random_exponential(_PAUSE_FIRST_S, _PAUSE_MAX_S),
            before_sleep=self._note_failure,
        )
        return await retrying(self._connect)

    def _note_failure(self, state: RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        self.problem = getattr(failure, "problem", str(failure))
        self.was_tried.set()
        self._tell(self.problem)

    def _tell(self, problem: str | None) -> None:
        if problem != self._told:
            self._told = problem
            log.warning("inbox.disconnected", store=str(self._address), error=problem)

    async def _connect(self) -> Link:
        try:
            async with asyncio.timeout(CONNECT_S):
                host = await self._find()
                link = await connect(self._address, host, pushed=self._pushed)
        except (OSError, TimeoutError) as exc:
            problem = str(exc) or f"no connection within {CONNECT_S:.0f} s"
            raise StoreUnavailableError(str(self._address), problem) from exc
        try:
            if self._greet is not None:
                async with asyncio.timeout(ANSWER_S):
                    await self._greet(link)
        except TimeoutError as exc:
            link.abort("it did not answer")
            problem = f"no answer within {ANSWER_S:.0f} s"
            raise StoreUnavailableError(str(self._address), problem) from exc
        except RefusedByRedisError as exc:
            # Nobody would connect again if this went up, also when it is mended.
            link.abort("it was of no use")
            raise StoreUnavailableError(str(self._address), str(exc)) from exc
        except BaseException:
            link.abort("it was of no use")
            raise
        return link

    async def _watch(self, link: Link) -> str:
        """Wait until the connection is lost, asking now and then; returns why."""
        while True:
            try:
                async with asyncio.timeout(_PING_EACH_S):
                    return await asyncio.shield(link.lost)
            except TimeoutError:
                try:
                    async with asyncio.timeout(ANSWER_S):
                        await link.call(b"PING")
                except TimeoutError:
                    link.abort(f"no answer within {ANSWER_S:.0f} s")
                except LinkLostError:
                    pass

    # --- for its users

    async def ask(self, *words: Word, within_s: float = ANSWER_S) -> Answer:
        """
        Send a command and return its answer.

        Raises:
            StoreUnavailableError: If there is no connection or no answer in time (then it
                may have been done or not), or the server cannot do it now.
            RefusedByRedisError: If it answers with any other error.

        """
        return await ask(self._address, self.current(), *words, within_s=within_s)

    async def ask_all(self, asked: Sequence[Sequence[Word]]) -> list[Answer]:
        """Send all commands at once and return their answers; errors as `ask`."""
        link = self.current()
        futures = [link.call(*words) for words in asked]
        return [await answer_of(self._address, link, future) for future in futures]

    def current(self) -> Link:
        """Return the connection; StoreUnavailableError while there is none."""
        if self.link is None:
            problem = self.problem or "it is not connected"
            raise StoreUnavailableError(str(self._address), problem)
        return self.link

    async def answer_to(self, future: "asyncio.Future[Answer]") -> Answer:
        """Wait for the answer to a command that was sent by the connection; as `ask`."""
        return await answer_of(self._address, self.current(), future)

    async def run_script(
        self, script: Script, *words: Word, key: Word, within_s: float = ANSWER_S
    ) -> Answer:
        """Run `script`, which the server knows since `connect`; errors as `ask`."""
        return await self.ask(
            b"EVALSHA", script.sha, b"1", key, *words, within_s=within_s
        )


async def ask(
    address: RedisAddress, link: Link, *words: Word, within_s: float = ANSWER_S
) -> Answer:
    """Send a command by `link` and return its answer; errors as `KeptLink.ask`."""
    return await answer_of(address, link, link.call(*words), within_s=within_s)


async def answer_of(
    address: RedisAddress,
    link: Link,
    future: "asyncio.Future[Any]",
    *,
    within_s: float = ANSWER_S,
) -> Answer:
    """Wait for the answer to a command that was sent by `link`; errors as `ask`."""
    store = str(address)
    try:
        async with asyncio.timeout(within_s):
            answer = await future
    except TimeoutError as exc:
        # What comes now would be taken for the answer to something else.
        problem = f"no answer within {within_s:g} s"
        link.abort(problem)
        raise StoreUnavailableError(store, problem) from exc
    except LinkLostError as exc:
        raise StoreUnavailableError(store, str(exc)) from exc
    if is_error(answer):
        raise failure_of(address, str(answer), link)
    return answer


def waits(address: RedisAddress) -> Sequence[Sequence[Word]]:
    """Return what is asked behind a write: how many replicas have it; or nothing."""
    if not address.replicas:
        return ()
    return ((b"WAIT", address.replicas, REPLICAS_MS),)


def see_replicas(address: RedisAddress, answers: Sequence[Answer]) -> None:
    """
    See that enough of them have it, by the answers to `waits`.

    Raises:
        StoreUnavailableError: If not.

    """
    for count in answers:
        if count < address.replicas:
            problem = f"{count} of {address.replicas} replicas have followed"
            raise StoreUnavailableError(str(address), problem)


def is_missing_right(text: str) -> bool:
    """Say whether an error of a script is that of a right that our login has not."""
    return any(words in text for words in _DENIED_TEXTS)


def failure_of(address: RedisAddress, text: str, link: Link | None) -> Exception:
    """Return what an error of the server means to us."""
    # "-ERR Error running script: … -OOM command not allowed" is how a script has it.
    words = text.replace("-", " ").split()
    code = words[0] if words else ""
    if code not in _AWAY:
        code = next((word for word in words if word in _AWAY), code)
    is_denied = is_missing_right(text)
    if link is not None and (code in _LEAVE or is_denied):
        link.abort(text)
    if code in _AWAY or is_denied or any(words in text for words in _AWAY_TEXTS):
        return StoreUnavailableError(str(address), text)
    return RefusedByRedisError(text)


async def connect(
    address: RedisAddress, host: Host, *, pushed: Pushed | None = None
) -> Link:
    """
    Connect, log in, and send the scripts.

    Raises:
        OSError: If there is nobody, or nobody who answers in time.
        StoreUnavailableError: If the server does not let us in, or not now.

    """
    try:
        # The system would wait minutes for a host that drops what is sent to it.
        async with asyncio.timeout(CONNECT_S):
            link = await open_link(address, host, pushed=pushed)
    except TimeoutError as exc:
        raise OSError(str(exc) or f"no connection within {CONNECT_S:.0f} s") from exc
    try:
        hello: list[Word] = [b"HELLO", b"3"]
        if address.user is not None or address.password is not None:
            # A user may need no password; without its name we would be somebody else.
            hello += [b"AUTH", address.user or "default", address.password or ""]
        try:
            await ask(address, link, *hello)
        except StoreUnavailableError as exc:
            problem = greeting_lost(address, exc.problem)
            raise StoreUnavailableError(str(address), problem) from exc
        greeting: list[Sequence[Word]] = [
            *([(b"SELECT", address.db)] if address.db else []),
            (b"CLIENT", b"SETNAME", b"bridge"),
            *((b"SCRIPT", b"LOAD", script.code) for script in _SCRIPTS),
        ]
        for future in [link.call(*words) for words in greeting]:
            await answer_of(address, link, future)
    except RefusedByRedisError as exc:
        link.abort("it was of no use")
        raise StoreUnavailableError(str(address), str(exc)) from exc
    except BaseException:
        link.abort("it was of no use")
        raise
    return link
