"""
Count what one message passes through in `bridge/`, from the broker's bytes to the window's.

    python -m tests.message_path            memory: and sqlite:, a table as Markdown
    python -m tests.message_path --calls    also each call, in order

A whole bridge runs in this process with a private RabbitMQ node and one window. After a
few messages to warm up, every call of a Python function of `bridge/` is recorded, in all
threads, while one more message is delivered and acked. The smallest of several such
recordings is reported: the others contain a timer as well.
"""

import argparse
import asyncio
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Final

import aio_pika

from tests.conftest import HASH_PLUGINS, eventually
from tests.integration.running import (
    RawWindow,
    open_windows,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

_PACKAGE: Final = str(Path(__file__).parents[1] / "bridge")
_WARM_UP: Final = 20
_RECORDINGS: Final = 15
_ACK_S: Final = 0.05  # acks are gathered for a few milliseconds
_EXPRESSIONS: Final = {"<genexpr>", "<listcomp>", "<lambda>", "<dictcomp>"}


@dataclass(slots=True)
class Recording:
    """Calls of functions of `bridge/`, in order: module, function."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """Record the call that `frame` begins, as a profile function."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_PACKAGE):
            module = code.co_filename[len(_PACKAGE) + 1 : -len(".py")]
            if code.co_name not in _EXPRESSIONS:
                self.calls.append((module, code.co_name))

    @property
    def modules(self) -> int:
        """How many modules the calls are in."""
        return len({module for module, _ in self.calls})

    @property
    def changes_of_module(self) -> int:
        """How often a call is in another module than the call before it."""
        modules = [module for module, _ in self.calls]
        return sum(one != two for one, two in pairwise(modules))


@contextmanager
def recording() -> Iterator[Recording]:
    """Record in this thread, and in every thread that reads `_current`."""
    record = Recording()
    _current.append(record)
    sys.setprofile(record.note)
    try:
        yield record
    finally:
        sys.setprofile(None)
        _current.clear()


_current: list[Recording] = []


def _note_in_thread(frame: FrameType, event: str, argument: object) -> None:
    for record in _current:
        record.note(frame, event, argument)


def _has_received(window: RawWindow, messages: int) -> bool:
    return len(window.data()) == messages


async def measure(node: LocalNode, inbox: str) -> Recording:
    """Return the shortest of several recordings of one message."""
    namespace = f"path-{inbox.partition(':')[0]}"
    settings = settings_for(node, namespace, inbox=inbox)
    records = []
    async with running_bridge(settings) as running:
        connection = await aio_pika.connect(node.url)
        async with (
            connection,
            open_windows(
                running.listening.public_url, [running.token("ann")]
            ) as windows,
        ):
            channel = await connection.channel()
            exchange = await channel.get_exchange(f"{namespace}.messages", ensure=False)
            (window,) = windows
            for number in range(_WARM_UP + _RECORDINGS):
                with recording() as record:
                    message = aio_pika.Message(b'{"n": %d}' % number, delivery_mode=2)
                    await exchange.publish(message, routing_key="ann")
                    await eventually(partial(_has_received, window, number + 1))
                    await asyncio.sleep(_ACK_S)
                if number >= _WARM_UP:
                    records.append(record)
    return min(records, key=lambda record: len(record.calls))


async def run(*, with_calls: bool) -> None:
    """Measure both stores and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        async with LocalNode.start(plugins=HASH_PLUGINS) as node:
            found = {
                inbox.partition(":")[0] + ":": await measure(node, inbox)
                for inbox in ("memory:", f"sqlite:{folder}/inbox.db")
            }
    lines = ["| store | calls | modules | changes of module |", "|---|---|---|---|"]
    lines += [
        f"| `{store}` | {len(record.calls)} | {record.modules} | {record.changes_of_module} |"
        for store, record in found.items()
    ]
    if with_calls:
        for store, record in found.items():
            lines += ["", store, *(f"{m}.{f}" for m, f in record.calls)]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.message_path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", action="store_true", help="list each call")
    given = parser.parse_args()
    threading.setprofile(_note_in_thread)  # for the threads that the stores start
    asyncio.run(run(with_calls=given.calls))


if __name__ == "__main__":
    main()
