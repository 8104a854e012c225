"""
What a window gets from the inbox when it connects or falls behind, until it is up to date.

What is stored meanwhile passes the window's closed gate and is read from the inbox as
well. So there is no queue beside the inbox, and none that could overflow; pages are
small and each message waits while the page has much to read, so a long inbox costs no
memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import time
from typing import Final

import structlog

from bridge.core.frames import event_packet
from bridge.core.journal import JournalEntry
from bridge.core.position import Position
from bridge.core.replay import Page, ReplayPlan
from bridge.enums import EVENT_SYNC, Closing, Stage, SyncReason
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import InboxReader
from bridge.metrics import Metrics
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Window

log = structlog.get_logger(__name__)

_PAGE_MESSAGES: Final = 256


@dataclass(frozen=True, slots=True)
class Sync:
    """
    What a replay brought, as `bridge:sync` tells it.

    Attributes:
        replayed: Messages that were written.
        expired: Messages that were left out, their time being over.
        missed: Messages that are gone, expired ones included; `None` = nobody knows.
        reason: Why something is gone; `None` if nothing is.

    """

    replayed: int
    expired: int
    missed: int | None
    reason: SyncReason | None

    @property
    def wire(self) -> dict[str, object]:
        """As a page gets it."""
        return {
            "replayed": self.replayed,
            "complete": self.reason is None,
            "missed": self.missed,
            "reason": self.reason,
        }


class Replays:
    """
    Brings windows up to date: new ones, and those that fell behind.

    `close` is called with a window that reads nothing or whose inbox cannot be read.

    Attributes:
        page_bytes: How much is read from an inbox at a time.
        patience_s: How long a window may read nothing.

    """

    def __init__(
        self,
        *,
        rooms: Rooms,
        inbox: InboxReader,
        metrics: Metrics,
        close: Callable[[Window, Closing], None],
    ) -> None:
        self._rooms = rooms
        self._inbox = inbox
        self._metrics = metrics
        self._close = close
        self.page_bytes = 0
        self.patience_s = 0.0

    def sync_at_once(self, window: Window, plan: ReplayPlan, *, last: int) -> bool:
        """
        Open the gate of a new window if it has all up to `last`, the end of its inbox.

        Returns:
            False if there is something to read first.

        """
        if window.offset < last or not self._rooms.open_gate(window):
            return False
        window.tell(EVENT_SYNC, Sync(0, 0, plan.missed, plan.reason).wire)
        return True

    async def sync(self, window: Window, plan: ReplayPlan) -> None:
        """Bring a new window up to date, and tell it so. Never raises."""
        sync = await self._replay(window, plan)
        if sync is not None:
            window.tell(EVENT_SYNC, sync.wire)

    async def catch_up(self, window: Window) -> None:
        """
        Bring a window up to date that fell behind. Never raises.

        The page notices nothing, unless something was dropped from the inbox or expired
        before it could be read: then it is told as after a connect.
        """
        sync = await self._replay(window, ReplayPlan(after=window.offset))
        if sync is not None and sync.reason is not None:
            window.tell(EVENT_SYNC, sync.wire)

    async def _replay(self, window: Window, plan: ReplayPlan) -> Sync | None:
        """Replay; `None` if the window is gone, or was closed because that failed."""
        try:
            sync = await _replay(
                window,
                plan,
                inbox=self._inbox,
                rooms=self._rooms,
                page_bytes=self.page_bytes,
                patience_s=self.patience_s,
            )
        except StoreUnavailableError as exc:
            log.warning("window.replay_failed", error=str(exc))
            self._close(window, Closing.UNAVAILABLE)
        except Exception:
            log.exception("window.replay_failed")
            self._close(window, Closing.UNAVAILABLE)
        else:
            if sync is None:
                self._close(window, Closing.SLOW)  # nothing if it is gone already
                return None
            self._metrics.replayed.inc(sync.replayed)
            self._metrics.left_out.inc(sync.expired)
            return sync
        return None


async def _replay(
    window: Window,
    plan: ReplayPlan,
    *,
    inbox: InboxReader,
    rooms: Rooms,
    page_bytes: int,
    patience_s: float,
) -> Sync | None:
    """
    Write what `window` has not had and open its gate.

    Args:
        window: In its room, its gate closed.
        plan: What it misses already.
        inbox: Where its messages are.
        rooms: Where its gate is.
        page_bytes: How much is read at a time.
        patience_s: How long the window may read nothing.

    Returns:
        What it got; `None` if it is gone, or read nothing for too long and has to be closed.

    Raises:
        StoreUnavailableError: If the inbox cannot be read now.

    """
    replayed = expired = gone = 0
    while True:
        page = await inbox.read(
            window.user,
            after=window.offset,
            max_messages=_PAGE_MESSAGES,
            max_bytes=page_bytes,
        )
        if not await _write(window, page, patience_s):
            return None
        if page.messages:
            rooms.journal.note(
                JournalEntry(
                    time(),
                    Stage.WRITTEN,
                    window.user,
                    offset=page.messages[-1].offset,
                    after=page.messages[0].offset - 1,
                    windows=1,
                    text="which read it from the inbox",
                )
            )
        if page.messages and window.delivers_by_writing:
            inbox.mark_delivered(window.user, page.messages[-1].offset)
        replayed += len(page.messages)
        expired += page.expired
        gone += page.gone
        window.offset = page.next_after
        # No await between this and the open gate, or something could slip through.
        if page.next_after >= page.last and rooms.open_gate(window):
            break
    missed = None if plan.missed is None else plan.missed + gone + expired
    return Sync(replayed, expired, missed, _reason(plan, gone=gone, expired=expired))


async def _write(window: Window, page: Page, patience_s: float) -> bool:
    for stored in page.messages:
        message = stored.message
        position = str(Position(window.epoch, stored.offset))
        payload = event_packet(message.event, message.data, position)
        is_written = await window.carrier.write_patiently(
            payload, stored.offset, limit_s=patience_s
        )
        if not is_written:
            return False
        window.offset = stored.offset  # from now on the page may ack it
    return not window.carrier.closed


def _reason(plan: ReplayPlan, *, gone: int, expired: int) -> SyncReason | None:
    if plan.reason is not None:
        return plan.reason
    if gone:  # the inbox was trimmed faster than the window could read
        return SyncReason.LIMIT
    return SyncReason.EXPIRED if expired else None
