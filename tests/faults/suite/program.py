"""
The program `bridge`, with places at which it can be told to die.

Production code has no hooks for tests: here its methods are wrapped before it is run.
A control file arms one place (`PLACE COUNT`); the process removes the file and kills
itself with SIGKILL when it gets there for the COUNTth time; at one place it stops itself
with SIGSTOP instead, until somebody wakes it. It ends with its parent, too:
its standard input is a pipe from there.

Run with the environment FAULTS_CONTROL=FILE, and FAULTS_MUTANT=NAME for a bridge that
is wrong on purpose, to see whether the checker notices.
"""

import asyncio
import os
import random
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bridge import wiring as options
from bridge.amqp.consume.intake import Intake
from bridge.cli.main import main
from bridge.inbox.memory.store import MemoryInbox
from bridge.pipeline import Pipeline
from bridge.sockets.engineio.session import EngineSession

BEFORE_APPEND: Final = "before_append"
IN_APPEND: Final = "in_append"
AFTER_APPEND: Final = "after_append"
BEFORE_ACK: Final = "before_ack"
AFTER_ACK: Final = "after_ack"
IN_REPLAY: Final = "in_replay"
FREEZE_BEFORE_APPEND: Final = "freeze_before_append"
PLACES: Final = (
    BEFORE_APPEND, IN_APPEND, AFTER_APPEND, BEFORE_ACK, AFTER_ACK, IN_REPLAY,
)  # fmt: skip

CONTROL_VARIABLE: Final = "FAULTS_CONTROL"
MUTANT_VARIABLE: Final = "FAULTS_MUTANT"

# How long a mutant leaves its acks time to reach the broker before it goes on.
_MUTANT_PAUSE_S: Final = 0.05
_APPEND_AT_MOST_S: Final = 0.006

Method = Callable[..., Awaitable[Any]]


class Places:
    """The place that is armed, if any."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._count = 0

    def is_armed(self, place: str) -> bool:
        """Whether this is where to die; the control file is gone when it is."""
        try:
            name, count = self._control.read_text().split()
        except (FileNotFoundError, ValueError):  # none, or half written
            self._count = 0
            return False
        if name != place:
            return False
        self._count += 1
        if self._count < int(count):
            return False
        self._control.unlink(missing_ok=True)
        return True

    def pass_by(self, place: str) -> None:
        """Die here if this is the place."""
        if self.is_armed(place):
            die()


def die() -> None:
    """End this process as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)


def wrap_places(places: Places) -> None:
    """Put the places in; what the methods do is not changed."""
    for store in store_classes():
        _wrap(store, "append", _around_append(places))
    _wrap(Intake, "ack", _around(places, BEFORE_ACK, AFTER_ACK))
    _wrap(EngineSession, "send_when_writable", _around(places, IN_REPLAY, None))


def store_classes() -> list[type]:
    """Return the stores that the bridge knows."""
    named = [getattr(options, name) for name in dir(options) if name.endswith("Inbox")]
    return [each for each in named if isinstance(each, type)] or [MemoryInbox]


def _wrap(owner: type, name: str, change: Callable[[Method], Method]) -> None:
    setattr(owner, name, change(getattr(owner, name)))


def _around(
    places: Places, before: str | None, after: str | None
) -> Callable[[Method], Method]:
    def change(method: Method) -> Method:
        async def changed(*args: Any, **kwargs: Any) -> Any:
            if before:
                places.pass_by(before)
            result = await method(*args, **kwargs)
            if after:
                places.pass_by(after)
            return result

        return changed

    return change


def _around_append(places: Places) -> Callable[[Method], Method]:
    around = _around(places, BEFORE_APPEND, AFTER_APPEND)

    def change(method: Method) -> Method:
        wrapped = around(method)

        async def changed(*args: Any, **kwargs: Any) -> Any:
            if places.is_armed(FREEZE_BEFORE_APPEND):
                os.kill(os.getpid(), signal.SIGSTOP)
            if places.is_armed(IN_APPEND):
                # By a clock, so that it hits whatever the store is doing then.
                delay_s = random.random() * _APPEND_AT_MOST_S  # noqa: S311 - no secret
                timer = threading.Timer(delay_s, die)
                timer.daemon = True
                timer.start()
            return await wrapped(*args, **kwargs)

        return changed

    return change


# --- bridges that are wrong on purpose ---------------------------------------------------


def ack_before_append() -> None:
    """The classic: what is in the hands of the bridge when it dies is gone."""

    def change(method: Method) -> Method:
        async def changed(self: Any, batch: Any, good: Any) -> Any:
            await self._intake.ack(batch)
            await asyncio.sleep(_MUTANT_PAUSE_S)
            return await method(self, batch, good)

        return changed

    _wrap(Pipeline, "_store", change)


def swap() -> None:
    """Store each batch backwards."""

    def change(method: Method) -> Method:
        async def changed(self: Any, messages: Sequence[Any], **kwargs: Any) -> Any:
            offsets = await method(self, messages[::-1], **kwargs)
            return offsets[::-1]

        return changed

    for store in store_classes():
        _wrap(store, "append", change)


def forget_ids() -> None:
    """Store messages as if they had no id: what is published again comes twice."""

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
    """Store whatever is in hand, whoever has the queue by now."""

    def change(method: Method) -> Method:
        async def changed(self: Any, messages: Sequence[Any], **_: Any) -> Any:
            return await method(self, messages)

        return changed

    for store in store_classes():
        _wrap(store, "append", change)


MUTANTS: Final[dict[str, Callable[[], None]]] = {
    "ack_before_append": ack_before_append,
    "swap": swap,
    "forget_ids": forget_ids,
    "forget_fences": forget_fences,
}


def _end_with_parent() -> None:
    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    if mutant := os.environ.pop(MUTANT_VARIABLE, ""):
        MUTANTS[mutant]()
    wrap_places(Places(Path(os.environ.pop(CONTROL_VARIABLE))))
    sys.argv[0] = "bridge"
    main()
