"""The model of receipts: which outcomes a store may tell, and which it must."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message
from bridge.core.message_options import Tracking
from bridge.core.receipts import WorkerEvent


class ModelLog(Protocol):
    """The model of an inbox, as far as outcomes depend on it."""

    first: int
    replaced: set[int]

    @property
    def live(self) -> list[int]:
        """The offsets of the kept messages."""


@dataclass
class TrackedMessage:
    """
    One tracked message.

    Attributes:
        log: Its inbox.
        offset: Where it is, or was.
        message: The message.
        tracking: What its producer wants to be told.
        delivered_s: When a mark passed it while it was in the inbox.
        may_be_lost: Whether a crash may have lost that mark.
        told: What was told, in order.

    """

    log: ModelLog
    offset: int
    message: Message
    tracking: Tracking
    delivered_s: float | None = None
    may_be_lost: bool = False
    told: list[str] = field(default_factory=list)

    @property
    def late_s(self) -> float | None:
        """When it counts as undelivered."""
        after_s = self.tracking.undelivered_after_s
        return None if after_s is None else self.message.taken_s + after_s

    def may_tell(self, outcome: str, now_s: float) -> bool:
        """Return whether the store may tell `outcome` now."""
        was_delivered = self.delivered_s is not None and not self.may_be_lost
        match outcome:
            case "undelivered":
                in_time = was_delivered and (self.delivered_s or 0) < (self.late_s or 0)
                return self.late_s is not None and not in_time
            case "delivered":
                return self.delivered_s is not None
            case "expired":
                is_right = self.message.is_expired(ClockReading(now_s))
            case "replaced":
                is_right = self.offset in self.log.replaced
            case _:
                # A message that is replaced while it is too old may count as either.
                is_right = self.offset not in self.log.live
        return is_right and not was_delivered

    def check_complete(self) -> None:
        """Check, after everything was decided, that exactly what is right was told."""
        finals = [each for each in self.told if each != "undelivered"]
        assert len(finals) == self.tracking.wants_receipt, self
        is_late = "undelivered" in self.told
        must_be_late = (
            self.late_s is not None
            and self.delivered_s is None
            and self.offset not in self.log.replaced
        )
        assert is_late >= must_be_late, self
        assert self.told[1:].count("undelivered") == 0, self


class ReceiptModel:
    """All tracked messages, by the correlation id that no other one has."""

    def __init__(self) -> None:
        self._tracked: dict[str | None, TrackedMessage] = {}
        self._events: dict[str, bytes] = {}
        self._ids: dict[str | None, str] = {}

    def store(self, log: ModelLog, offset: int, message: Message) -> None:
        """Note a message that was stored."""
        options = message.options
        if options is not None and options.tracking is not None:
            tracking = options.tracking
            tracked = TrackedMessage(log, offset, message, tracking)
            self._tracked[tracking.correlation_id] = tracked

    def mark(self, log: ModelLog, offset: int, now_s: float) -> None:
        """Note a mark that moves now; `log` is trimmed."""
        for each in self._tracked.values():
            if each.log is log and each.offset <= offset and each.delivered_s is None:
                is_expired = each.message.is_expired(ClockReading(now_s))
                if each.offset in log.live and not is_expired:
                    each.delivered_s = now_s

    def crash(self) -> None:
        """Note that marks may have been lost."""
        for each in self._tracked.values():
            each.may_be_lost = True

    def told(self, events: Iterable[WorkerEvent], now_s: float) -> None:
        """Check events; only a repeat may be told again."""
        for event in events:
            if event.id in self._events:
                assert self._events[event.id] == event.body
                continue
            self._events[event.id] = event.body
            name = event.correlation_id
            id_, outcome = event.id.split(".")
            assert self._ids.setdefault(name, id_) == id_
            tracked = self._tracked[name]
            assert tracked.may_tell(outcome, now_s), (outcome, now_s, tracked)
            tracked.told.append(outcome)

    def check_complete(self) -> None:
        """Check all messages; none of them is in an inbox any more."""
        for each in self._tracked.values():
            each.check_complete()
