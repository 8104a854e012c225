"""
The program `bridge` with crash points, and with deliberate defects (mutants).

Production code has no hooks for tests: this program wraps its methods before it runs them.
A control file arms one point (`POINT COUNT`). When the process reaches the point for the
COUNTth time, it removes the file and kills itself with SIGKILL; at one point it stops
itself with SIGSTOP instead, until a fault resumes it. It also exits when its parent ends,
which closes its standard input.

The environment variable FAULTS_CONTROL names the control file. FAULTS_MUTANTS selects
defects, to test that the checker detects them. FAULTS_CLOCK names a file with seconds by which
the wall clock of the bridge is ahead; without the file, or while it is empty, it is right.
"""

import asyncio
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, Final

from bridge import wiring as options
from bridge.amqp import topology
from bridge.amqp.consume.intake import Intake
from bridge.amqp.shards import migration
from bridge.cli.main import main
from bridge.clock import SteadyClock
from bridge.core.clock_reading import ClockReading
from bridge.core.receipts import Receipt, WorkerEvent
from bridge.inbox.lone_presence import LonePresence
from bridge.inbox.maintenance import InboxMaintenance
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.redis.bridge_reports import BridgeReports
from bridge.inbox.redis.presence import RedisPresence
from bridge.inbox.sqlite import statements
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.receipts import SqliteReceipts
from bridge.log_writer import BackgroundLogHandler
from bridge.pipeline import Pipeline
from bridge.presence import PresenceReporter
from bridge.sockets.engineio.session import EngineSession
from bridge.sockets.server import SocketIOServer
from bridge.sockets.window import window_of

BEFORE_APPEND: Final = "before_append"
IN_APPEND: Final = "in_append"
AFTER_APPEND: Final = "after_append"
BEFORE_ACK: Final = "before_ack"
AFTER_ACK: Final = "after_ack"
IN_REPLAY: Final = "in_replay"
FREEZE_BEFORE_APPEND: Final = "freeze_before_append"
CRASH_POINTS: Final = (
    BEFORE_APPEND, IN_APPEND, AFTER_APPEND, BEFORE_ACK, AFTER_ACK, IN_REPLAY,
)  # fmt: skip

CONTROL_VARIABLE: Final = "FAULTS_CONTROL"
MUTANTS_VARIABLE: Final = "FAULTS_MUTANTS"
CLOCK_VARIABLE: Final = "FAULTS_CLOCK"

# Gives the acks of a mutant time to reach the broker.
_MUTANT_PAUSE_S: Final = 0.05
_LONG_COMMIT_S: Final = 0.3  # so that a kill at a random moment is before a commit
_UNROUTABLE_FOR_S: Final = 1.0  # longer than a producer needs for a new channel
_APPEND_AT_MOST_S: Final = 0.006
_SWEEP_INTERVAL_S: Final = 1.0

Method = Callable[..., Awaitable[Any]]


class ArmedPoint:
    """The crash point that the control file arms, if any."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._count = 0

    def reach(self, point: str) -> bool:
        """Count a visit of `point`; true if it is the one to crash at. Removes the file then."""
        try:
            name, count = self._control.read_text().split()
        except (FileNotFoundError, ValueError):  # no file, or partly written
            self._count = 0
            return False
        if name != point:
            return False
        self._count += 1
        if self._count < int(count):
            return False
        self._control.unlink(missing_ok=True)
        return True

    def die_at(self, point: str) -> None:
        """Kill this process if it has reached the armed point."""
        if self.reach(point):
            die()


def die() -> None:
    """Kill this process, like a crash."""
    os.kill(os.getpid(), signal.SIGKILL)


def add_crash_points(armed: ArmedPoint) -> None:
    """Wrap the methods with crash points; their results do not change."""
    for store in store_classes():
        _wrap(store, "append", _around_append(armed))
    _wrap(Intake, "ack", _around(armed, BEFORE_ACK, AFTER_ACK))
    _wrap(EngineSession, "send_when_writable", _around(armed, IN_REPLAY, None))


def set_clock_by(file: Path) -> None:
    """Let the wall clock of the bridge be ahead by the seconds in `file`, at any time."""

    def wall() -> float:
        try:
            return time.time() + float(file.read_text())
        except (FileNotFoundError, ValueError):  # no file, or partly written
            return time.time()

    changed = partialmethod(SteadyClock.__init__, wall=wall)
    SteadyClock.__init__ = changed  # type: ignore[method-assign, assignment] # for all


def sweep_often() -> None:
    """Let the bridge delete what is too old each second, which it does once a minute."""
    changed = partialmethod(
        InboxMaintenance.__init__, sweep_interval_s=_SWEEP_INTERVAL_S
    )
    InboxMaintenance.__init__ = changed  # type: ignore[method-assign, assignment] # for all


def store_classes() -> list[type]:
    """Return the classes of all inbox stores."""
    named = [getattr(options, name) for name in dir(options) if name.endswith("Inbox")]
    return [each for each in named if isinstance(each, type)] or [MemoryInbox]


def _wrap(owner: type, name: str, change: Callable[[Method], Method]) -> None:
    setattr(owner, name, change(getattr(owner, name)))


def _around(
    armed: ArmedPoint, before: str | None, after: str | None
) -> Callable[[Method], Method]:
    def change(method: Method) -> Method:
        async def changed(*args: Any, **kwargs: Any) -> Any:
            if before:
                armed.die_at(before)
            result = await method(*args, **kwargs)
            if after:
                armed.die_at(after)
            return result

        return changed

    return change


def _around_append(armed: ArmedPoint) -> Callable[[Method], Method]:
    around = _around(armed, BEFORE_APPEND, AFTER_APPEND)

    def change(method: Method) -> Method:
        wrapped = around(method)

        async def changed(*args: Any, **kwargs: Any) -> Any:
            if armed.reach(FREEZE_BEFORE_APPEND):
                os.kill(os.getpid(), signal.SIGSTOP)
            if armed.reach(IN_APPEND):
                # By a timer, so that it can interrupt any step of the store.
                delay_s = random.random() * _APPEND_AT_MOST_S  # noqa: S311 - no secret
                timer = threading.Timer(delay_s, die)
                timer.daemon = True
                timer.start()
            return await wrapped(*args, **kwargs)

        return changed

    return change


# --- mutants: bridges with a deliberate defect


def ack_before_append() -> None:
    """Ack deliveries before they are stored: a crash loses them."""

    def change(method: Method) -> Method:
        async def changed(self: Any, batch: Any, good: Any) -> Any:
            await self._intake.ack(batch)
            await asyncio.sleep(_MUTANT_PAUSE_S)
            return await method(self, batch, good)

        return changed

    _wrap(Pipeline, "_store", change)


def swap() -> None:
    """Store each batch in reverse order."""

    def change(method: Method) -> Method:
        async def changed(self: Any, messages: Sequence[Any], **kwargs: Any) -> Any:
            offsets = await method(self, messages[::-1], **kwargs)
            return offsets[::-1]

        return changed

    for store in store_classes():
        _wrap(store, "append", change)


def forget_ids() -> None:
    """Store messages without their ids: repeated publishes arrive twice."""

    def change(method: Method) -> Method:
        async def changed(self: Any, messages: Sequence[Any], **kwargs: Any) -> Any:
            bare = [
                type(message)(
                    message.user, message.event, message.data,
                    message.taken_s, None, message.deadline_s,
                )
                for message in messages
            ]  # fmt: skip
            return await method(self, bare, **kwargs)

        return changed

    for store in store_classes():
        _wrap(store, "append", change)


def forget_fences() -> None:
    """Store deliveries without fencing tokens: also those of a queue that was lost."""

    def change(method: Method) -> Method:
        async def changed(self: Any, messages: Sequence[Any], **_: Any) -> Any:
            return await method(self, messages)

        return changed

    for store in store_classes():
        _wrap(store, "append", change)


def trust_clock() -> None:
    """Judge ages by the wall clock alone: a jump deletes what it makes look old."""

    def read(self: SteadyClock) -> ClockReading:
        return ClockReading(self.wall_s())

    SteadyClock.read = read  # type: ignore[method-assign] # the defect


def block_on_logs() -> None:
    """Write each log line where it is logged: a reader that stops blocks the loop."""

    def emit(self: BackgroundLogHandler, record: logging.LogRecord) -> None:
        self._write(f"{self.format(record)}\n".encode())

    BackgroundLogHandler.emit = emit  # type: ignore[method-assign] # the defect


def trust_responses() -> None:
    """Count messages as delivered when they are written into the response to a poll."""

    def change(method: Method) -> Method:
        async def changed(self: EngineSession, request: Any) -> Any:
            packets = await method(self, request)
            if self._queue is not None:
                written = max((n for _, n in self._queue._response), default=0)
                self._report_received(written)
            return packets

        return changed

    _wrap(EngineSession, "poll", change)


def trust_writes() -> None:
    """Count what was written to a window when a ping follows it, not when it is answered."""

    def ping_sent(self: SocketIOServer, session: EngineSession) -> None:
        window = window_of(session)
        if window is not None:
            self._count(window, window.offset, "")

    SocketIOServer.ping_sent = ping_sent  # type: ignore[method-assign] # the defect


def declare_public_exchange_first() -> None:
    """Declare the public exchange before what it leads to, and without an alternate."""

    async def changed(
        connection: Any, wanted: topology.Topology, **limits: Any
    ) -> None:
        channel = await connection.open_channel(confirms=False)
        public = replace(wanted.exchanges[-1], alternate=None)
        await topology.declare_one(channel, public, **limits)
        await channel.close()
        await asyncio.sleep(_UNROUTABLE_FOR_S)
        await topology.declare(connection, wanted, **limits)

    setattr(migration, "declare", changed)  # noqa: B010 - it is imported there


def wait_for_dead_letters() -> None:
    """Publish each dead letter before the batch continues, as long as that may take."""

    async def hold(
        self: Any, batch: Any, _delivery: Any, outcome: Any, publish: Any, done: Any
    ) -> None:
        await self._with_retries(batch, publish, doing=str(outcome))
        done()

    Pipeline._hold = hold  # type: ignore[method-assign, assignment] # the defect


def keep_older() -> None:
    """Keep the older message of a key, and drop the newer one."""
    insert = statements.insert

    def changed(connection: Any, head: str, *args: Any, **kwargs: Any) -> None:
        head = head.replace("REPLACE INTO sparse", "IGNORE INTO sparse")
        insert(connection, head, *args, **kwargs)

    setattr(statements, "insert", changed)  # noqa: B010 - the defect


def count_holes() -> None:
    """Report replaced messages as missed."""

    def change(method: Method) -> Method:
        async def changed(self: Any, user: str) -> Any:
            state = await method(self, user)
            return replace(state, first=state.first + state.holes, holes=0)

        return changed

    for store in store_classes():
        _wrap(store, "state", change)


def forget_retained() -> None:
    """Send no retained messages to new windows."""

    async def read_retained(*_: Any, **__: Any) -> Sequence[Any]:
        return ()

    for store in store_classes():
        setattr(store, "read_retained", read_retained)  # noqa: B010 - the defect


def forget_events() -> None:
    """Confirm the events for workers before they are published, as if there were no outbox."""

    def change(method: Method) -> Method:
        async def changed(self: Any, limit: int, **kwargs: Any) -> Any:
            events = await method(self, limit, **kwargs)
            await self.confirm_events(events)
            return events

        return changed

    for store in store_classes():
        _wrap(store, "pending_events", change)


def publish_before_commit() -> None:
    """Publish events before the transaction that decided them is committed."""
    early: list[WorkerEvent] = []
    put, verify = SqliteReceipts.put, StoreFile.verify

    def put_early(self: SqliteReceipts, connection: Any, events: Any) -> None:
        early.extend(event for event, _ in events)
        put(self, connection, events)

    def verify_late(self: StoreFile) -> None:
        if early:
            time.sleep(_LONG_COMMIT_S)  # in the thread of the writer
        verify(self)

    SqliteReceipts.put = put_early  # type: ignore[method-assign] # the defect
    StoreFile.verify = verify_late  # type: ignore[method-assign] # the defect
    for store in store_classes():
        _wrap(store, "pending_events", partial(_take_early, early))
        _wrap(store, "confirm_events", _confirm_late)


def _take_early(early: list[WorkerEvent], method: Method) -> Method:
    async def changed(self: Any, limit: int, **kwargs: Any) -> Any:
        for _ in range(
            500 if limit else 0
        ):  # about a second, longer than a transaction
            if early:
                events = early[:limit]
                del early[:limit]
                return events
            await asyncio.sleep(0.002)
        return await method(self, limit, **kwargs)

    return changed


def _confirm_late(method: Method) -> Method:
    async def changed(self: Any, events: Sequence[WorkerEvent]) -> None:
        if any(event.key for event in events):  # early ones have none
            await method(self, events)

    return changed


def forget_late() -> None:
    """Never report a message as undelivered."""

    def is_late(self: Receipt, at: ClockReading) -> bool:  # noqa: ARG001
        return False

    Receipt.is_late = is_late  # type: ignore[method-assign] # the defect


def forget_reports() -> None:
    """Let time decide in a fleet without waiting for what other bridges have not written."""
    arguments = BridgeReports.arguments

    def changed(self: BridgeReports, tag: int, *, unwritten_s: float) -> Any:
        unwritten, server_s, _ = arguments(self, tag, unwritten_s=unwritten_s)
        return unwritten, server_s, "0"  # all other bridges are gone

    BridgeReports.arguments = changed  # type: ignore[method-assign] # the defect


def forget_online() -> None:
    """Forget at the start of a bridge who was online."""
    begin = LonePresence.__init__

    def changed(self: LonePresence, _: Any = (), **kwargs: Any) -> None:
        begin(self, **kwargs)

    LonePresence.__init__ = changed  # type: ignore[method-assign, assignment] # the defect


def skip_debounce() -> None:
    """Report users as offline when their last window is closed, also if they return."""
    begin = PresenceReporter.__init__

    def changed(self: PresenceReporter, store: Any, **kwargs: Any) -> None:
        begin(self, store, **(kwargs | {"debounce_s": 0.0}))

    PresenceReporter.__init__ = changed  # type: ignore[method-assign] # the defect


def keep_sessions() -> None:
    """Never let the users of another bridge leave when that bridge has ended."""
    begin = RedisPresence.__init__

    def changed(
        self: Any, servers: Any, clock: Any, timing: Any, **kwargs: Any
    ) -> None:
        begin(self, servers, clock, replace(timing, gone_s=3600.0), **kwargs)

    RedisPresence.__init__ = changed  # type: ignore[method-assign] # the defect


MUTANTS: Final[dict[str, Callable[[], None]]] = {
    "ack_before_append": ack_before_append,
    "swap": swap,
    "forget_ids": forget_ids,
    "forget_fences": forget_fences,
    "trust_clock": trust_clock,
    "block_on_logs": block_on_logs,
    "trust_responses": trust_responses,
    "trust_writes": trust_writes,
    "declare_public_exchange_first": declare_public_exchange_first,
    "wait_for_dead_letters": wait_for_dead_letters,
    "keep_older": keep_older,
    "count_holes": count_holes,
    "forget_retained": forget_retained,
    "forget_events": forget_events,
    "publish_before_commit": publish_before_commit,
    "forget_late": forget_late,
    "forget_reports": forget_reports,
    "forget_online": forget_online,
    "skip_debounce": skip_debounce,
    "keep_sessions": keep_sessions,
}


def _end_with_parent() -> None:
    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    for mutant in os.environ.pop(MUTANTS_VARIABLE, "").split():
        MUTANTS[mutant]()
    if clock := os.environ.pop(CLOCK_VARIABLE, ""):
        set_clock_by(Path(clock))
    sweep_often()
    add_crash_points(ArmedPoint(Path(os.environ.pop(CONTROL_VARIABLE))))
    sys.argv[0] = "bridge"
    main()
