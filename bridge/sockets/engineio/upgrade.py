"""The upgrade of a session from long polling to a WebSocket (Engine.IO protocol 4)."""

import asyncio
from collections.abc import Callable

from bridge.core.frames import text_frame
from bridge.core.websocket import close_frame
from bridge.sockets.engineio.websocket import WebSocketTransport


class UpgradeHandshake:
    """
    Engine.IO's probe, as the first handler of the new WebSocket.

    The client sends `2probe`, gets `3probe`, ends its polling and sends `5`. Anything else
    fails the upgrade, and the client continues to poll. `on_probe` is called when the
    pending poll must return; `on_done` exactly once, with the WebSocket or with `None` if
    the upgrade failed.

    Attributes:
        websocket: The new WebSocket.
        is_probed: Whether the client ends its polling.

    """

    __slots__ = ("_deadline", "_on_done", "_on_probe", "is_probed", "websocket")

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        max_bytes: int,
        timeout_s: float,
        on_probe: Callable[[], None],
        on_done: Callable[[WebSocketTransport | None], None],
    ) -> None:
        self.websocket = WebSocketTransport(transport, self, max_bytes=max_bytes)
        self.is_probed = False
        self._on_probe = on_probe
        self._on_done = on_done
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(timeout_s, self.connection_closed)

    def text_received(self, text: str) -> None:
        """Process `2probe`, then `5`."""
        if text == "2probe" and not self.is_probed:
            self.is_probed = True
            self.websocket.transport.write(text_frame(b"3probe"))
            self._on_probe()
        elif text == "5" and self.is_probed:
            self._deadline.cancel()
            self._on_done(self.websocket)
        else:
            self.connection_closed()

    def admit_frame(self) -> bool:
        """Fail the upgrade: it consists of text messages only."""
        self.connection_closed()
        return False

    def frame_ignored(self) -> None:
        """Do nothing; never called, because `admit_frame` admits no frame."""

    def binary_received(self) -> None:
        """Do nothing; as above."""

    def close_received(self) -> None:
        """Do nothing: nothing was written but the probe."""

    def connection_closed(self) -> None:
        """Fail the upgrade; the client continues to poll."""
        self._deadline.cancel()
        self.websocket.close(close_frame())
        self._on_done(None)
