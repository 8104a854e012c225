"""
One connection to a Redis server: commands and their answers in order, and what is pushed.

Parsing and writing are done by hiredis, in C. Nothing here awaits: an answer is a future,
and all that one read from the socket has pushed is handed over in one call. Why no client
library: see redis.py.

It speaks RESP3 (Redis 6 and later, Valkey), so one connection serves commands and the live
feed, and what the feed brings is in the order of the answers.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast

try:
    import hiredis
except ImportError as exc:  # an extra: most bridges have no Redis
    MISSING: ImportError | None = exc
else:
    MISSING = None

Word = bytes | str | int | float
# What a server answers; only who asked knows its shape.
Answer: TypeAlias = Any
Pushed = Callable[[Sequence[Sequence[Any]]], None]

# Why a connection has ended that the other side ended.
HUNG_UP: Final = "it hung up"
_NOTHING: Final = object()
_MESSAGE: Final = frozenset({b"message", b"smessage"})


class LinkLostError(Exception):
    """The connection ended; whether what was asked has been done, nobody knows."""


class _Confirmations:
    """What a subscription is answered with: so many pushes, or one error in their place."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class Link(asyncio.Protocol):
    """
    One connection, for as long as it lasts.

    Attributes:
        lost: Done when it has ended; its result says why.

    """

    def __init__(self, pushed: Pushed | None = None) -> None:
        """Hand what the server pushes to `pushed`, many at a time, in order."""
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pushed = pushed
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._answers: deque[asyncio.Future[Any] | _Confirmations] = deque()
        self._transport: asyncio.Transport | None = None
        self._reason = HUNG_UP

    @property
    def certificate_end_s(self) -> float | None:
        """Until when the server's certificate holds, in Unix time; `None` without TLS."""
        tls = self._transport and self._transport.get_extra_info("ssl_object")
        return ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"]) if tls else None

    # --- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take in what came."""
        reader = self._reader
        pushes: list[Sequence[Any]] = []
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _NOTHING:
                if type(answer) is hiredis.PushNotification:
                    pushes.append(answer)
                    if answer[0] not in _MESSAGE:
                        self._confirm()
                elif self._answers and not self._take(answer):
                    break
        except hiredis.ProtocolError as exc:
            self.abort(f"it speaks something else: {exc}")
        if pushes and self._pushed is not None:
            self._pushed(pushes)

    def _take(self, answer: object) -> bool:
        """Hand over the answer that is next; false if the connection is of no use now."""
        waiting = self._answers.popleft()
        if isinstance(waiting, _Confirmations):
            # Not allowed, or another node's: without this word, each answer from here on
            # would be taken for that of the question before.
            self.abort(f"it refuses a subscription: {answer}")
            return False
        if not waiting.done():  # its asker may have gone away
            waiting.set_result(answer)
        if is_error(answer) and str(answer).startswith("MOVED"):
            # Channels of a slot that has gone are given up for us, by pushes that may have
            # been taken for those of a subscription: what comes now may be shifted by one.
            self.abort(str(answer))
            return False
        return True

    def _confirm(self) -> None:
        """Count one channel of the subscriptions that are next."""
        waiting = self._answers[0] if self._answers else None
        if isinstance(waiting, _Confirmations):
            waiting.left -= 1
            if not waiting.left:
                self._answers.popleft()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all who wait."""
        reason = str(exc) if exc else self._reason
        if not self.lost.done():
            self.lost.set_result(reason)
        while self._answers:
            waiting = self._answers.popleft()
            if isinstance(waiting, asyncio.Future) and not waiting.done():
                waiting.set_exception(LinkLostError(reason))
                waiting.exception()  # nobody may be waiting any more

    # --- for us

    def call(self, *words: Word) -> "asyncio.Future[Any]":
        """
        Send one command.

        Returns:
            Its answer: an error of the server is one too. It fails with LinkLostError if
            the connection ends before.

        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            future.set_exception(LinkLostError(self._reason))
            future.exception()
            return future
        self._answers.append(future)
        self._transport.write(_packed(words))
        return future

    def send(self, *words: Word) -> None:
        """Send a command about channels, which is answered with a push for each."""
        if self._transport is not None and not self._transport.is_closing():
            self._answers.append(_Confirmations(len(words) - 1))
            self._transport.write(_packed(words))

    def abort(self, reason: str) -> None:
        """End it at once."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()


def _packed(words: tuple[Word, ...]) -> bytes:
    # Its type hints speak of a tuple of one.
    packed: bytes = hiredis.pack_command(cast("tuple[Word]", words))
    return packed


def is_error(answer: object) -> bool:
    """Say whether the server answered with an error."""
    return isinstance(answer, hiredis.ReplyError)
