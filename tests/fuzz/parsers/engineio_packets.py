"""Engine.IO packets of both transports: which of them reach the layer above."""

from typing import Final

from bridge.enums import Closing
from bridge.metrics import Metrics
from bridge.sockets.engineio.handshake import OpeningRequest
from bridge.sockets.engineio.session import (
    EngineSession,
    SessionHandler,
    SessionLimits,
    Work,
)

MODULES: Final = ("bridge.sockets.engineio.session",)
SEEDS: Final = (
    b"4hello\x1e3\x1e4again",
    b"2probe",
    b"1\x1e4late",
    b"bAAAA\x1e4x",
    b"5\x1e6\x1e0\x1e4x",
    b"4\x1e" * 30,
    b"\x1e\x1e4x",
    "\u0664x".encode(),
)
_PER_SECOND: Final = 5


class _Above:
    """The server and the layer above a session."""

    def __init__(self) -> None:
        self.limits = SessionLimits(
            outbound_bytes=1000,
            events_per_second=_PER_SECOND,
            sessions_per_address=1,
            connect_s=1.0,
            ping_interval_s=25,
            ping_timeout_s=20,
            max_packet_bytes=1000,
        )
        self.handler: SessionHandler = self
        self.metrics = _METRICS
        self.is_running = True
        self.texts: list[str] = []
        self.closed_for: list[str] = []

    def spawn(self, work: Work, *, name: str) -> None:
        raise AssertionError(name, work)

    def spawn_in_turn(self, work: Work, *, name: str) -> None:
        raise AssertionError(name, work)

    def is_suspended(self, address: str) -> bool:
        return not address

    def message_received(self, session: EngineSession, text: str) -> Work | None:
        assert not session.is_closed
        self.texts.append(text)
        return None

    def binary_received(self, session: EngineSession) -> None:
        session.close("binary")

    def take_expected_replies(self, session: EngineSession) -> int:
        return int(session.is_closed)

    def messages_received(self, session: EngineSession, offset: int) -> None:
        """Nothing is sent."""

    def ping_sent(self, session: EngineSession) -> None:
        """Nothing is sent."""

    def pong_received(self, session: EngineSession) -> None:
        """Pongs do not count."""

    def client_closing(self, session: EngineSession) -> None:
        """The session closes itself."""

    def limit_exceeded(self, session: EngineSession, code: Closing) -> None:
        session.close(code)

    def session_checked(self, session: EngineSession, real_s: float) -> None:
        """No time passes."""

    def session_closed(self, session: EngineSession, reason: str) -> None:
        assert session.is_closed
        self.closed_for.append(reason)


_METRICS: Final = Metrics()


def fuzz_one(data: bytes) -> None:
    """Messages pass in order until the first packet that ends the session."""
    try:
        received = data.decode().split("\x1e")
    except UnicodeDecodeError:
        return  # refused before the session
    above = _Above()
    request = OpeningRequest(
        "192.0.2.1",
        "192.0.2.1",
        is_origin_allowed=True,
        authorization=None,
        cookies=None,
        origin=None,
    )
    session = EngineSession(above, "sid", request)
    for packet in received:
        session.text_received(packet)
    expected: list[str] = []
    for packet in received:
        if packet[:1] not in {"0", "3", "4", "5", "6"}:
            break
        if packet[0] == "4":
            expected.append(packet[1:])
    # The rate limit may have ended the session earlier.
    assert above.texts == expected[: len(above.texts)]
    assert len(above.texts) == len(expected) or above.closed_for == [Closing.FLOODING]
    assert len(above.closed_for) <= 1
