"""
Opening a connection to a Redis server, and keeping one open.

`connect` opens TCP or TLS, logs in and loads the scripts. `PersistentConnection` reconnects
with backoff. It does not make callers wait for a lost connection: they get an error at once,
because the pipeline has its own retries and clients are better off with a quick answer.

Certificates are read for every connection, so renewed files need no restart.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
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
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.protocol import (
    CLOSED_BY_SERVER,
    Argument,
    PushHandler,
    RedisConnection,
    Reply,
)
from bridge.inbox.redis.scripts.loaded import ALL_SCRIPTS
from bridge.inbox.redis.scripts.script import Script
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming

log = structlog.get_logger(__name__)

# A connection that ends sooner than this is followed by a pause, not by a reconnect at once.
_SHORT_LIVED_S: Final = 1.0
_CLOSED_TEXTS: Final = (CLOSED_BY_SERVER, "reset by peer", "Broken pipe", "_ALERT_")

FindHost = Callable[[], Awaitable[Host]]
Prepare = Callable[[RedisConnection], Awaitable[None]]


# --- opening one connection


async def connect(
    address: RedisAddress,
    host: Host,
    *,
    on_push: PushHandler | None = None,
    timing: RedisTiming = DEFAULT_TIMING,
) -> RedisConnection:
    """
    Open a connection, log in, and load the scripts.

    Raises:
        StoreUnavailableError: If the host cannot be reached in time, refuses the login,
            or is not ready.

    """
    connection = await _open(address, host, timing, on_push=on_push)
    async with _setup_of(connection):
        hello: list[Argument] = [b"HELLO", b"3"]
        if address.user is not None or address.password is not None:
            # A user may have no password. Without AUTH the server would log in the
            # default user.
            hello += [b"AUTH", address.user or "default", address.password or ""]
        try:
            await connection.ask(*hello)
        except StoreUnavailableError as exc:
            raise _with_cause(address, exc) from exc
        setup: list[Sequence[Argument]] = [
            *([(b"SELECT", address.db)] if address.db else []),
            (b"CLIENT", b"SETNAME", b"bridge"),
            *((b"SCRIPT", b"LOAD", script.code) for script in ALL_SCRIPTS),
        ]
        await connection.ask_all(setup)
    return connection


@asynccontextmanager
async def temporary_connection(
    address: RedisAddress,
    host: Host,
    timing: RedisTiming,
    *,
    is_sentinel: bool = False,
) -> AsyncIterator[RedisConnection]:
    """
    Open a connection for a few commands, without RESP3 and scripts.

    Raises:
        StoreUnavailableError: If opening it or a command in the block fails, or all of it
            takes longer than `timing.connect_s`.

    """
    user, password = address.user, address.password
    if is_sentinel:
        user, password = address.sentinel_user, address.sentinel_password
    try:
        # One limit for opening and commands: callers try several hosts in turn.
        async with asyncio.timeout(timing.connect_s):
            connection = await _open(address, host, timing)
            try:
                if user is not None or password is not None:
                    await connection.ask(b"AUTH", user or "default", password or "")
                yield connection
            finally:
                connection.abort("no longer needed")
    except StoreUnavailableError as exc:
        raise _with_cause(address, exc) from exc
    except (RefusedByRedisError, TimeoutError) as exc:
        problem = str(exc) or f"no reply within {timing.connect_s:g} s"
        raise StoreUnavailableError(str(address), problem) from exc


@asynccontextmanager
async def _setup_of(
    connection: RedisConnection, *, within_s: float | None = None
) -> AsyncIterator[None]:
    """Abort the connection if the block fails, with StoreUnavailableError as the error."""
    try:
        async with asyncio.timeout(within_s):
            yield
    except (RefusedByRedisError, TimeoutError) as exc:
        # An administrator can resolve even what retries do not, so callers keep trying.
        problem = str(exc) or f"no reply within {within_s:g} s"
        connection.abort(problem)
        raise StoreUnavailableError(connection.store, problem) from exc
    except BaseException:
        connection.abort("its setup failed")
        raise


async def _open(
    address: RedisAddress,
    host: Host,
    timing: RedisTiming,
    *,
    on_push: PushHandler | None = None,
) -> RedisConnection:
    """Open TCP or TLS and send nothing; StoreUnavailableError names the likely cause."""
    handshake_s = timing.tls_handshake_s
    loop = asyncio.get_running_loop()
    try:
        # Without a timeout the system waits minutes for a host that drops packets.
        async with asyncio.timeout(timing.connect_s):
            context = None
            if address.has_tls:
                context = await asyncio.to_thread(_tls_context, address)
            _, connection = await loop.create_connection(
                lambda: RedisConnection(
                    str(address), on_push=on_push, reply_s=timing.reply_s
                ),
                host.name,
                host.port,
                ssl=context,
                ssl_handshake_timeout=handshake_s if context else None,
            )
    except OSError as exc:
        match exc:
            case TimeoutError():
                problem = str(exc) or f"no connection within {timing.connect_s:g} s"
            case ssl.SSLCertVerificationError():
                problem = _untrusted(address, host, exc)
            case ssl.SSLError():
                problem = f"TLS with {host} failed: {exc.reason or exc}"
            case socket.gaierror():
                problem = f"unknown host {host.name}"
            case ConnectionAbortedError():
                problem = (
                    f"no TLS handshake with {host} within {handshake_s:g} s; "
                    "is it a TLS port?"
                )
            case ConnectionRefusedError():
                problem = f"connection refused; is Redis running at {host}?"
            case _ if "Connect call failed" in str(exc):
                # For a name with several addresses asyncio joins all failures in one text.
                problem = f"connection refused; is Redis running at {host}?"
            case _:
                problem = str(exc)
        raise StoreUnavailableError(str(address), problem) from exc
    return connection


def _tls_context(address: RedisAddress) -> ssl.SSLContext:
    """Read the certificates. Blocks."""
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
    except OSError as exc:  # ssl.SSLError is an OSError
        raise OSError(_unreadable("ca", address.ca_file, exc)) from exc
    if address.cert_file is not None:
        try:
            # Without a password here OpenSSL would prompt for one on the terminal.
            context.load_cert_chain(address.cert_file, address.key_file, password="")
        except OSError as exc:
            raise OSError(_unreadable("cert", address.cert_file, exc)) from exc
    return context


def _unreadable(option: str, path: str | None, exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"{option}={path}: no matching certificate and key in PEM format"
    return f"{option}={path}: {exc.strerror or exc}"


def _untrusted(
    address: RedisAddress, host: Host, exc: ssl.SSLCertVerificationError
) -> str:
    text = (
        f"the certificate of {host} is not trusted ({exc.verify_message.rstrip('.')})"
    )
    if "mismatch" in exc.verify_message or "expired" in exc.verify_message:
        return text
    if address.ca_file is None:
        return f"{text}; name its certificate authority by ?ca=FILE"
    return f"{text}; is ca={address.ca_file} its certificate authority?"


def _with_cause(
    address: RedisAddress, error: StoreUnavailableError
) -> StoreUnavailableError:
    """
    Add the likely cause if the connection was closed before the first reply.

    With TLS 1.3 a server rejects the client's certificate after the handshake, by an alert.
    If it closes the socket before it has read all bytes, the kernel may drop that alert, so
    a plain close can mean the same.
    """
    if not any(text in error.problem for text in _CLOSED_TEXTS):
        return error
    cause = "does it expect TLS (rediss://)?"
    if address.has_tls and address.cert_file is None:
        cause = "does it require a client certificate (cert=FILE)?"
    elif address.has_tls:
        cause = f"does it trust the certificate cert={address.cert_file}?"
    return StoreUnavailableError(str(address), f"{CLOSED_BY_SERVER}; {cause}")


# --- keeping a connection open


class PersistentConnection:
    """
    A connection that `run` opens, checks, and reopens after it was lost.

    Attributes:
        connection: Ready for use; ``None`` while there is none.
        problem: Why there is no connection; ``None`` while there is one.
        was_attempted: Set after each attempt to connect, successful or not.

    """

    def __init__(
        self,
        address: RedisAddress,
        find_host: FindHost,
        *,
        on_push: PushHandler,
        prepare: Prepare,
        timing: RedisTiming = DEFAULT_TIMING,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Create it without connecting.

        Args:
            address: The login, and the name for errors.
            find_host: Returns the host for each attempt.
            on_push: Receives pushes of the server.
            prepare: Makes a new connection ready before anything else uses it.
            timing: Timeouts and intervals.
            on_lost: Called after a connection was lost.

        """
        self._address = address
        self._find_host = find_host
        self._timing = timing
        self._on_push = on_push
        self._prepare = prepare
        self._on_lost = on_lost
        self.connection: RedisConnection | None = None
        self.problem: str | None = "not connected yet"
        self.was_attempted = asyncio.Event()
        self._logged_problem: str | None = None

    def replace_login(self, address: RedisAddress) -> None:
        """Log in as `address` says at the next connect; the open connection stays."""
        self._address = address

    async def run(self) -> None:
        """Keep the connection open until cancelled; raises nothing else."""
        pause_s = self._timing.backoff_first_s
        try:
            while True:
                connection = await self._connect_with_retries()
                since_s = monotonic()
                self.connection, self.problem = connection, None
                self.was_attempted.set()
                if self._logged_problem is not None:
                    self._logged_problem = None
                    log.info("inbox.reconnected", store=str(self._address))
                self.problem = await self._watch(connection)
                self.connection = None
                self._log_problem(self.problem)
                self._on_lost()
                if monotonic() - since_s < _SHORT_LIVED_S:
                    await asyncio.sleep(pause_s)
        finally:
            if self.connection is not None:
                self.connection.abort("the store was closed")
                self.connection = None
            self.problem = "closed"

    async def _connect_with_retries(self) -> RedisConnection:
        timing = self._timing
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailableError),
            wait=wait_random_exponential(timing.backoff_first_s, timing.backoff_max_s),
            before_sleep=self._note_failure,
        )
        return await retrying(self._connect)

    def _note_failure(self, state: RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        self.problem = getattr(failure, "problem", str(failure))
        self.was_attempted.set()
        self._log_problem(self.problem)

    def _log_problem(self, problem: str | None) -> None:
        if problem != self._logged_problem:  # once, not for every attempt
            self._logged_problem = problem
            log.warning("inbox.disconnected", store=str(self._address), error=problem)

    async def _connect(self) -> RedisConnection:
        timing = self._timing
        try:
            async with asyncio.timeout(timing.connect_s):
                host = await self._find_host()
                connection = await connect(
                    self._address, host, on_push=self._on_push, timing=timing
                )
        except TimeoutError as exc:
            problem = f"no connection within {timing.connect_s:g} s"
            raise StoreUnavailableError(str(self._address), problem) from exc
        async with _setup_of(connection, within_s=timing.reply_s):
            await self._prepare(connection)
        return connection

    async def _watch(self, connection: RedisConnection) -> str:
        """Ping the server until the connection is lost; return the reason."""
        while True:
            try:
                async with asyncio.timeout(self._timing.ping_interval_s):
                    return await asyncio.shield(connection.lost)
            except TimeoutError:
                # Without a reply this aborts the connection, which resolves `lost`.
                with suppress(StoreUnavailableError, RefusedByRedisError):
                    await connection.ask(b"PING")

    # --- sending commands

    def current(self) -> RedisConnection:
        """Return the connection; raise StoreUnavailableError while there is none."""
        if self.connection is None:
            problem = self.problem or "not connected"
            raise StoreUnavailableError(str(self._address), problem)
        return self.connection

    async def ask(self, *arguments: Argument) -> Reply:
        """Send a command and return its reply; errors as `RedisConnection.ask`."""
        return await self.current().ask(*arguments)

    async def ask_all(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        """Send all commands at once and return their replies; errors as `ask`."""
        return await self.current().ask_all(commands)

    async def run_script(self, script: Script, *arguments: Argument, key: str) -> Reply:
        """Run a script that `connect` has loaded; errors as `ask`."""
        return await self.ask(b"EVALSHA", script.sha, b"1", key, *arguments)

    # --- replicas

    def replica_commands(self) -> Sequence[Sequence[Any]]:
        """Return the command that counts replicas after a write; none if none are needed."""
        if not self._address.replicas:
            return ()
        return ((b"WAIT", self._address.replicas, self._timing.replicas_ms),)

    def check_replicas(self, replies: Sequence[Reply]) -> None:
        """Raise StoreUnavailableError if the replies to `replica_commands` are too low."""
        for count in replies:
            if count < self._address.replicas:
                problem = (
                    f"{count} of {self._address.replicas} replicas have acknowledged"
                )
                raise StoreUnavailableError(str(self._address), problem)
