"""
Replay: a window reads its inbox when it connects or falls behind, until it is up to date.

Messages that are stored during a replay pass the window's closed gate and are read from
the inbox too. So there is no queue besides the inbox and none that could overflow. Pages
are small, and a message is written when the client has read most of the previous ones, so
a long inbox costs no memory.

A new window first receives the newest message of each retained key, as far as the replay
that follows does not send it: those up to the offset at which the replay starts. They carry
the position of this offset, so acks, marks and a reconnect do not depend on them. If the
inbox is trimmed faster than it is read, the same is done for the deleted messages. So a
window receives the messages of each key in their order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import time
from typing import Final

import structlog

from bridge.core import packets
from bridge.core.frames import event_packet
from bridge.core.journal import JournalEntry
from bridge.core.message import Stored
from bridge.core.position import Position
from bridge.core.replay import ReplayPlan
from bridge.enums import EVENT_SYNC, Closing, Stage, SyncReason
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import InboxReader
from bridge.metrics import Metrics
from bridge.sockets.engineio.server import EngineServer
from bridge.sockets.options import SocketOptions
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Window

log = structlog.get_logger(__name__)

_PAGE_MESSAGES: Final = 256


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """
    The result of a replay, as `bridge:sync` reports it.

    Attributes:
        replayed: Messages that were written.
        missed: Messages that are gone or expired; `None` if their number is unknown.
        reason: Why messages are missing; `None` if none are.
        is_start_known: Whether the window has everything before the replay.
        expired: Messages that were skipped as past their deadline.

    """

    replayed: int
    missed: int | None
    reason: SyncReason | None
    is_start_known: bool
    expired: int = 0

    def render(self) -> str:
        """Return it as the packet `bridge:sync`."""
        is_unknown = self.reason is None and not self.is_start_known
        return packets.event(
            EVENT_SYNC,
            {
                "replayed": self.replayed,
                "complete": None if is_unknown else self.reason is None,
                "missed": None if is_unknown else self.missed,
                "reason": self.reason,
            },
        )


@lru_cache(maxsize=16)  # most windows that connect have missed nothing
def _sync_of_current(
    missed: int | None, reason: SyncReason | None, *, is_start_known: bool
) -> str:
    return ReplayResult(0, missed, reason, is_start_known).render()


class Replayer:
    """
    Brings windows up to date.

    `engine` runs the tasks. `close` is called with a window that reads nothing or whose
    inbox cannot be read.
    """

    def __init__(
        self,
        options: SocketOptions,
        *,
        rooms: Rooms,
        inbox: InboxReader,
        metrics: Metrics,
        engine: EngineServer,
        close: Callable[[Window, Closing], None],
    ) -> None:
        self._options = options
        self._rooms = rooms
        self._inbox = inbox
        self._metrics = metrics
        self._engine = engine
        self._close = close

    def apply(self, options: SocketOptions) -> None:
        """Use reloaded options from the next page on."""
        self._options = options

    def start(
        self, window: Window, plan: ReplayPlan, *, last: int, replies: Sequence[str]
    ) -> None:
        """
        Send `replies`, bring a new window up to date and send `bridge:sync`.

        Args:
            window: In its room, with its gate closed.
            plan: Where the replay starts and what is missing already.
            last: The newest offset of the inbox. If the window has it, its gate opens at
                once, without a task.
            replies: Packets that the client must receive first. If there is nothing to
                replay, one write to the socket contains all.

        """
        is_current = window.offset >= last and not plan.sends_retained
        if is_current and self._rooms.open_gate(window):
            sync = _sync_of_current(
                plan.missed, plan.reason, is_start_known=plan.is_start_known
            )
            window.session.send(*replies, sync)
        else:
            window.session.send(*replies)
            self._engine.spawn(self._sync(window, plan), name="replay")

    def catch_up(self, window: Window, late: Sequence[Stored]) -> None:
        """
        Bring a window up to date that fell behind.

        The client notices it only if messages were deleted or expired before they could
        be read: then it gets `bridge:sync` as after a connect.

        Args:
            window: In its room, with its gate closed.
            late: Messages that were held back from it. Each has the offset up to which the
                window has everything when it is written; the inbox is read after the last.

        """
        self._engine.spawn(self._catch_up(window, late), name="catch up")

    async def _sync(self, window: Window, plan: ReplayPlan) -> None:
        result = await self._try_replay(window, plan)
        if result is not None:
            window.session.send(result.render())

    async def _catch_up(self, window: Window, late: Sequence[Stored]) -> None:
        result = await self._try_replay(window, ReplayPlan(after=window.offset), late)
        if result is not None and result.reason is not None:
            window.session.send(result.render())

    async def _try_replay(
        self, window: Window, plan: ReplayPlan, late: Sequence[Stored] = ()
    ) -> ReplayResult | None:
        """Replay; `None` if the window is closed. Never raises."""
        try:
            result = await self._replay(window, plan, late)
        except StoreUnavailableError as exc:
            log.warning("window.replay_failed", error=str(exc))
            self._close(window, Closing.UNAVAILABLE)
        except Exception:
            log.exception("window.replay_failed")
            self._close(window, Closing.UNAVAILABLE)
        else:
            if result is None:
                return None
            self._metrics.replayed.inc(result.replayed)
            self._metrics.left_out.inc(result.expired)
            return result
        return None

    async def _replay(
        self, window: Window, plan: ReplayPlan, late: Sequence[Stored]
    ) -> ReplayResult | None:
        """
        Write the messages that `window` has not received, and open its gate.

        Returns:
            `None` if the window is closed; `_write` closes one that reads too slowly.

        Raises:
            StoreUnavailableError: If the inbox cannot be read.

        """
        if not await self._write_first(window, plan, late):
            return None
        replayed = expired = 0
        missed, reason = plan.missed, plan.reason
        while True:
            page = await self._inbox.read(
                window.user,
                after=window.offset,
                max_messages=_PAGE_MESSAGES,
                max_bytes=self._options.limits.outbound_bytes // 4,
            )
            if page.gone != 0:  # the inbox was trimmed faster than it was read
                reason = reason or SyncReason.LIMIT
                next_offset = next(
                    (m.offset for m in page.messages), page.next_after + 1
                )
                if not await self._write_retained(
                    window, plan, after=window.offset, upto=next_offset - 1
                ):
                    return None
            messages = [each for each in page.messages if plan.lacks(each.offset)]
            if not await self._write(
                window, messages, partial(plan.position, window.epoch)
            ):
                return None
            if messages:
                first, last = messages[0].offset, messages[-1].offset
                self._note_written(window, first - 1, last)
            replayed += len(messages)
            expired += page.expired
            missed = _sum(missed, page.gone)
            window.advance(max(window.offset, page.next_after))
            # No await between this check and the open gate, or a message could be missed.
            if page.next_after >= page.last and self._rooms.open_gate(window):
                break
        if expired:
            missed = _sum(missed, expired)
            reason = reason or SyncReason.EXPIRED
        return ReplayResult(replayed, missed, reason, plan.is_start_known, expired)

    async def _write_first(
        self, window: Window, plan: ReplayPlan, late: Sequence[Stored]
    ) -> bool:
        """Write what comes before the inbox is read; false if the window is closed."""
        after = window.offset
        if plan.sends_retained:
            # A page that was reloaded does not have what its position says.
            upto = after if plan.had is None else plan.had.newest
            return await self._write_retained(window, plan, after=0, upto=upto)
        if late:
            if not await self._write(window, late, partial(Position, window.epoch)):
                return False
            self._note_written(window, after, late[-1].offset)
        return True

    async def _write_retained(
        self, window: Window, plan: ReplayPlan, *, after: int, upto: int
    ) -> bool:
        """Write the retained messages in (`after`, `upto`]; false if the window is closed."""
        at = plan.had or Position(window.epoch, window.offset)

        def position_of(_offset: int) -> Position:
            return at

        while messages := await self._inbox.read_retained(
            window.user,
            after=after,
            upto=upto,
            max_bytes=self._options.limits.outbound_bytes // 4,
        ):
            if not await self._write(window, messages, position_of):
                return False
            after = messages[-1].offset
        return True

    async def _write(
        self,
        window: Window,
        messages: Sequence[Stored],
        position_of: Callable[[int], Position],
    ) -> bool:
        """
        Write messages at the speed of the client. Close the window if it reads too slowly.

        Args:
            window: The window.
            messages: The messages.
            position_of: Returns the position that a message with this offset carries.

        Returns:
            False if the window is closed.

        """
        for stored in messages:
            message = stored.message
            position = position_of(stored.offset)
            is_written = await window.session.send_when_writable(
                event_packet(message.event, message.data, str(position)),
                position.offset,
                timeout_s=self._options.limits.ping_timeout_s,
            )
            if not is_written:
                if not window.session.is_closed:
                    self._close(window, Closing.SLOW)
                return False
            window.advance(position.offset)  # the client may ack it from now on
        return not window.session.is_closed

    def _note_written(self, window: Window, after: int, last: int) -> None:
        self._rooms.journal.note(
            JournalEntry(
                time(),
                Stage.WRITTEN,
                window.user,
                offset=last,
                after=after,
                windows=1,
                text="as part of a replay from the inbox",
            )
        )


def _sum(number: int | None, more: int | None) -> int | None:
    """Add two numbers; ``None`` is unknown."""
    return None if number is None or more is None else number + more
