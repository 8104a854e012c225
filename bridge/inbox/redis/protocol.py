"""
One connection to a Redis server: commands with their replies in order, and pushes.

hiredis parses and packs, in C. The protocol itself never awaits: a reply is a future, and
all pushes of one read from the socket are handed over in one call. store.py says why no
client library is used.

The protocol is RESP3 (Redis 6 and later, Valkey). One connection therefore carries both
commands and the live feed, and pushes keep their order relative to replies.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast

from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.errors import classify_error
from bridge.inbox.redis.timing import DEFAULT_TIMING

try:
    import hiredis
except ImportError as exc:  # installed by the extra "redis" only
    MISSING: ImportError | None = exc
else:
    MISSING = None

Argument = bytes | str | int | float
# Only the sender of a command knows the type of its reply.
Reply: TypeAlias = Any
PushHandler = Callable[[Sequence[Sequence[Any]]], None]

CLOSED_BY_SERVER: Final = "the server closed the connection"
_NO_REPLY: Final = object()
_MESSAGE: Final = frozenset({b"message", b"smessage"})
_UNSUBSCRIBED: Final = frozenset({b"unsubscribe", b"sunsubscribe"})


class RedisConnectionLostError(Exception):
    """The connection ended. Whether the server ran the command is unknown."""


class _PendingSubscriptions:
    """The reply to a (un)subscribe command: one push for each channel, or one error."""

    __slots__ = ("channels", "kind")

    def __init__(self, kind: bytes, channels: set[bytes]) -> None:
        self.kind = kind
        self.channels = channels


class RedisConnection(asyncio.Protocol):
    """
    One connection, until it ends.

    Attributes:
        store: How errors name the store.
        lost: Done when the connection has ended; the result is the reason.

    """

    def __init__(
        self,
        store: str,
        *,
        on_push: PushHandler | None = None,
        reply_s: float = DEFAULT_TIMING.reply_s,
    ) -> None:
        """Pass pushes to `on_push`, in order; wait `reply_s` for each reply."""
        self.store = store
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_push = on_push
        self._reply_s = reply_s
        self._reader = hiredis.Reader(notEnoughData=_NO_REPLY)
        self._pending: deque[asyncio.Future[Any] | _PendingSubscriptions] = deque()
        self._transport: asyncio.Transport | None = None
        self._reason = CLOSED_BY_SERVER

    @property
    def certificate_end_s(self) -> float | None:
        """When the server's certificate expires, in Unix time; ``None`` without TLS."""
        tls = self._transport and self._transport.get_extra_info("ssl_object")
        return ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"]) if tls else None

    # --- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Resolve the futures of complete replies, then hand over all pushes at once."""
        reader = self._reader
        pushes: list[Sequence[Any]] = []
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NO_REPLY:
                if type(reply) is hiredis.PushNotification:
                    pushes.append(reply)
                    if reply[0] not in _MESSAGE and not self._confirm(reply):
                        break
                elif self._pending and not self._resolve(reply):
                    break
        except hiredis.ProtocolError as exc:
            self.abort(f"the server does not speak the Redis protocol: {exc}")
        if pushes and self._on_push is not None:
            self._on_push(pushes)

    def _resolve(self, reply: object) -> bool:
        """Resolve the oldest future; return false if the connection is unusable now."""
        waiting = self._pending.popleft()
        if isinstance(waiting, _PendingSubscriptions):
            # No permission, or the slot is on another node. One error replaces the pushes
            # of all channels, so later replies could be matched to the wrong commands.
            self.abort(f"the server refused a subscription: {reply}")
            return False
        if not waiting.done():  # the caller may have been cancelled
            waiting.set_result(reply)
        if is_error(reply) and str(reply).startswith("MOVED"):
            # The keys are on another node. The error may also belong to an UNSUBSCRIBE
            # that crossed the node's own push for the same channel: then every later
            # reply would be one command off.
            self.abort(str(reply))
            return False
        return True

    def _confirm(self, push: Sequence[Any]) -> bool:
        """
        Count one confirmed channel of the oldest subscription command.

        Returns:
            False if no command asked for it. A node that gives a slot away ends the
            subscriptions to its channels by itself; a new connection must find the new
            master and subscribe there.

        """
        kind, channel = push[:2]
        waiting = self._pending[0] if self._pending else None
        if (
            isinstance(waiting, _PendingSubscriptions)
            and waiting.kind == kind
            and channel in waiting.channels
        ):
            waiting.channels.remove(channel)
            if not waiting.channels:
                self._pending.popleft()
            return True
        if kind in _UNSUBSCRIBED:
            self.abort("the server ended a subscription")
            return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all futures that still wait for a reply."""
        reason = str(exc) if exc else self._reason
        if not self.lost.done():
            self.lost.set_result(reason)
        while self._pending:
            waiting = self._pending.popleft()
            if isinstance(waiting, asyncio.Future) and not waiting.done():
                waiting.set_exception(RedisConnectionLostError(reason))
                waiting.exception()  # marks it as retrieved: its caller may be gone

    # --- called by the store

    def call(self, *arguments: Argument) -> "asyncio.Future[Any]":
        """
        Send one command without waiting.

        Returns:
            The reply; an error of the server is a reply, too. The future fails with
            RedisConnectionLostError if the connection ends first.

        """
        [future] = self._send_all([arguments])
        return future

    def _send_all(
        self, commands: Sequence[Sequence[Argument]]
    ) -> "list[asyncio.Future[Any]]":
        # First, because it may raise: then nothing is sent, and no reply is awaited.
        packed = b"".join([_packed(tuple(command)) for command in commands])
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
        if self._transport is None or self._transport.is_closing():
            for future in futures:
                future.set_exception(RedisConnectionLostError(self._reason))
                future.exception()
            return futures
        self._pending.extend(futures)
        self._transport.write(packed)
        return futures

    async def ask(self, *arguments: Argument, within_s: float | None = None) -> Reply:
        """
        Send one command and return its reply.

        Args:
            arguments: The command and its arguments.
            within_s: Overrides the connection's timeout for replies.

        Raises:
            StoreUnavailableError: If no reply arrived in time (the command may have
                been run), or the server cannot run the command now.
            RefusedByRedisError: If the reply is any other error.

        """
        return await self.result_of(self.call(*arguments), within_s=within_s)

    async def ask_all(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        """Send all commands with one write and return their replies; errors as `ask`."""
        futures = self._send_all(commands)
        return [await self.result_of(future) for future in futures]

    async def result_of(
        self, future: "asyncio.Future[Any]", *, within_s: float | None = None
    ) -> Reply:
        """Wait for the reply to a command sent by `call`; errors as `ask`."""
        timeout_s = self._reply_s if within_s is None else within_s
        try:
            # No timer for a reply that is here: those of `ask_all` arrive together.
            async with asyncio.timeout(None if future.done() else timeout_s):
                reply = await future
        except TimeoutError as exc:
            problem = f"no reply within {timeout_s:g} s"
            self.abort(problem)
            raise StoreUnavailableError(self.store, problem) from exc
        except RedisConnectionLostError as exc:
            raise StoreUnavailableError(self.store, str(exc)) from exc
        if is_error(reply):
            raise self.error_of(str(reply))
        return reply

    def error_of(self, text: str) -> Exception:
        """Return the exception for an error reply; abort if it makes us reconnect."""
        error, needs_reconnect = classify_error(self.store, text)
        if needs_reconnect:
            self.abort(text)
        return error

    async def info(self, section: bytes) -> dict[str, str]:
        """Return the fields of one section of INFO; errors as `ask`."""
        return parse_info(await self.ask(b"INFO", section))

    def send(self, command: bytes, *channels: bytes | str) -> None:
        """Send a command about channels; the server confirms each channel by a push."""
        if self._transport is not None and not self._transport.is_closing():
            packed = _packed((command, *channels))
            names = {c.encode() if isinstance(c, str) else c for c in channels}
            self._pending.append(_PendingSubscriptions(command.lower(), names))
            self._transport.write(packed)

    def abort(self, reason: str) -> None:
        """Close the connection at once, without flushing."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()


def _packed(arguments: tuple[Argument, ...]) -> bytes:
    # The type hints of hiredis demand a tuple of exactly one element.
    packed: bytes = hiredis.pack_command(cast("tuple[Argument]", arguments))
    return packed


def is_error(reply: object) -> bool:
    """Say whether a reply is an error."""
    return isinstance(reply, hiredis.ReplyError)


def parse_info(reply: bytes) -> dict[str, str]:
    """Return the fields of a reply to INFO."""
    lines = (line.partition(":") for line in reply.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}
