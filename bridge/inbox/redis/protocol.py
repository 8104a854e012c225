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
_ENDED: Final = frozenset({b"unsubscribe", b"sunsubscribe"})


class LinkLostError(Exception):
    """The connection ended; whether what was asked has been done, nobody knows."""


class _Confirmations:
    """What a subscription is answered with: a push for each, or one error in their place."""

    __slots__ = ("channels", "kind")

    def __init__(self, kind: bytes, channels: set[bytes]) -> None:
        self.kind = kind
        self.channels = channels


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
                    if answer[0] not in _MESSAGE and not self._confirm(answer):
                        break
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
            # The keys are elsewhere. And it may belong to an UNSUBSCRIBE that the node
            # answered, by itself, in the same moment: then all behind it is out of step.
            self.abort(str(answer))
            return False
        return True

    def _confirm(self, push: Sequence[Any]) -> bool:
        """
        Count one channel of the subscriptions that are next.

        False if nobody asked for it: a node that gives a slot away ends what is followed
        there. Whoever hears nothing more on it must ask anew, and ask who has it now.
        """
        kind, channel = push[:2]
        waiting = self._answers[0] if self._answers else None
        if (
            isinstance(waiting, _Confirmations)
            and waiting.kind == kind
            and channel in waiting.channels
        ):
            waiting.channels.remove(channel)
            if not waiting.channels:
                self._answers.popleft()
            return True
        if kind in _ENDED:
            self.abort("it has ended a subscription by itself")
            return False
        return True

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

    def send(self, command: bytes, *channels: bytes | str) -> None:
        """Send a command about channels, which is answered with a push for each."""
        if self._transport is not None and not self._transport.is_closing():
            words = (command, *channels)
            names = {c.encode() if isinstance(c, str) else c for c in channels}
            self._answers.append(_Confirmations(command.lower(), names))
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
