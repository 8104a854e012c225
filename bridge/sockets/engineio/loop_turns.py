"""
Limits how much work of connecting clients is begun in one turn of the event loop.

After the restart of a proxy all pages connect at once. The loop processes in one turn
everything that it can read, and a message for another page takes several turns, so that
message would wait until most pages are connected. Therefore the first bytes of a
connection and the tasks of its packets wait until a turn has capacity for them.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, cast

# A session costs about 0.05 ms, its admission 0.1 ms, a TLS handshake 0.5 to 1 ms.
_PER_TURN: Final = 16


class LoopTurns:
    """
    Makes calls in order, at most `per_turn` in each turn of the event loop.

    A call is made at once if there is capacity. Capacity is renewed when it is used up, not
    in each turn: that would wake up the loop once more for each connection.
    """

    def __init__(self, per_turn: int = _PER_TURN) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False

    @property
    def is_behind(self) -> bool:
        """Whether calls wait for a later turn."""
        return bool(self._waiting)

    def call(self, work: Callable[[], None]) -> None:
        """Call `work` now or in one of the next turns."""
        if self._left and not self._waiting:
            self._left -= 1
            work()
        else:
            self._waiting.append(work)
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_scheduled = False
        self._left = self._per_turn
        try:
            while self._waiting and self._left:
                self._left -= 1
                self._waiting.popleft()()
        finally:  # after a call that fails, too
            if self._waiting:
                self._schedule()


class FirstBytes(asyncio.Protocol):
    """
    The protocol of a connection until `turns` has capacity for its first bytes.

    `protocol`, which is connected at once, receives them then.
    """

    __slots__ = ("_protocol", "_received", "_transport", "_turns")

    _transport: asyncio.Transport

    def __init__(self, protocol: asyncio.Protocol, turns: LoopTurns) -> None:
        self._protocol = protocol
        self._turns = turns
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for bytes."""
        # The transports of uvloop are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass the first bytes on when it is their turn."""
        if self._received:
            # A client that does not wait for a response: it could fill the memory.
            self._transport.pause_reading()
            self._received += data
        else:
            self._received = data
            self._turns.call(self._pass_on)

    def _pass_on(self) -> None:
        if self._transport.is_closing():
            return
        self._transport.set_protocol(self._protocol)
        self._transport.resume_reading()
        try:
            self._protocol.data_received(self._received)
        except BaseException:
            self._transport.abort()  # as the loop does if it calls a protocol that fails
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end."""
        self._protocol.connection_lost(exc)
