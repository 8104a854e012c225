"""All workers: started one behind the other, kept running, and told to go together."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

import aiohttp
import orjson
import structlog

from bridge.core.worker_slot import Workplace
from bridge.errors import WorkersFailedError
from bridge.metrics import SupervisorMetrics
from bridge.workers.control_channel import Word
from bridge.workers.merged_metrics import MergedMetrics
from bridge.workers.slot import Command, Member
from bridge.workers.worker_client import Question, ask_all

log = structlog.get_logger(__name__)

# On top of the drain timeout: closing doors, broker and store.
_LAST_WORDS_S: Final = 15.0
_INSISTED_S: Final = 5.0
_HEALTH = Question("GET", "/health/ready", within_s=2.0)


class Crew:
    """
    The workers of one bridge.

    Attributes:
        members: One for each place.
        metrics: What the supervisor counts.
        merged: What the workers count.

    """

    def __init__(
        self,
        folder: str,
        *,
        count: int,
        command: Command,
        last_words_s: float = _LAST_WORDS_S,
    ) -> None:
        self.metrics = SupervisorMetrics()
        self.merged = MergedMetrics()
        self.members = [
            Member(
                Workplace(folder, index),
                command,
                was_any_listening=self._was_any_listening,
                on_ended=self._note_end,
            )
            for index in range(count)
        ]
        self.metrics.workers.set_function(lambda: len(self.listening))
        self._last_words_s = last_words_s
        self._is_leaving = False

    @property
    def listening(self) -> list[Member]:
        """Those that windows can come to."""
        return [member for member in self.members if member.is_listening]

    async def run(
        self,
        stop: asyncio.Event,
        *,
        on_listening: Callable[[], None],
        drain_s: Callable[[], float],
    ) -> None:
        """
        Keep all workers running until `stop` is set, then drain them.

        Args:
            stop: Set by whoever wants the bridge to go.
            on_listening: Called once, when windows can come to all of them.
            drain_s: What the workers' own leaving may take, as it is now.

        Raises:
            WorkersFailedError: If a worker cannot be kept running. The others were
                drained before.

        Cancellation:
            Kills the workers.

        """
        async with AsyncExitStack() as stack:
            for member in self.members:
                path = member.place.operator_socket
                connector = aiohttp.UnixConnector(path=path, limit=0)
                member.session = await stack.enter_async_context(
                    aiohttp.ClientSession(connector=connector)
                )
            async with asyncio.TaskGroup() as tasks:
                starting = tasks.create_task(
                    self._start(tasks, stop, on_listening), name="start"
                )
                await stop.wait()
                starting.cancel()
                self._is_leaving = True
                await self._drain(drain_s())
        for member in self.members:
            if member.lost is not None:
                raise WorkersFailedError(member.lost.code, member.lost.text)

    async def _start(
        self,
        tasks: asyncio.TaskGroup,
        stop: asyncio.Event,
        on_listening: Callable[[], None],
    ) -> None:
        """Start the first worker and then the others: what is wrong is told once."""
        for number, member in enumerate(self.members):
            tasks.create_task(
                self._keep(member, stop), name=f"worker.{member.place.index}"
            )
            if number == 0:
                await member.listened.wait()
        for member in self.members:
            await member.listened.wait()
        on_listening()

    async def _keep(self, member: Member, stop: asyncio.Event) -> None:
        await member.run()
        if member.lost is not None:
            log.error("worker.given_up", worker=member.place.index)
            stop.set()

    async def _drain(self, within_s: float) -> None:
        log.info("workers.draining", within_s=within_s, workers=len(self.listening))
        for member in self.members:
            member.tell(Word.DRAIN)
        if not await self._are_gone(within_s + self._last_words_s):
            log.warning("workers.drain_cut_short", pids=self._pids())
            for member in self.members:
                member.kill()
        log.info("workers.drained")

    async def insist(self) -> None:
        """Let all workers end at once; kill those that do not even do that."""
        for member in self.members:
            member.tell(Word.INSIST)
        if not await self._are_gone(_INSISTED_S):
            log.warning("workers.killed", pids=self._pids())
        for member in self.members:
            member.kill()

    async def _are_gone(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                for member in self.members:
                    await member.gone.wait()
        except TimeoutError:
            return False
        return True

    def tell(self, word: Word) -> None:
        """Say something to all."""
        for member in self.members:
            member.tell(word)

    def _pids(self) -> list[int]:
        return [member.pid for member in self.members if member.pid is not None]

    def _was_any_listening(self) -> bool:
        return any(member.listened.is_set() for member in self.members)

    def _note_end(self, member: Member) -> None:
        self.merged.end(member.place.index)
        if not self._is_leaving:
            self.metrics.restarts.inc()

    # --- how they are

    async def unready_reasons(self) -> list[str]:
        """
        Say what keeps the bridge from being ready; empty if nothing does.

        The kernel sends windows to each worker that listens: all of those must be ready.
        A worker that is being started again does not listen, and is missed by no window.
        """
        if self._is_leaving:
            return ["the bridge is going down"]
        members = self.listening
        if not members:
            return ["no worker listens yet"]
        reasons = []
        for member, answer in await ask_all(members, _HEALTH):
            name = f"worker {member.place.index}"
            if answer is None:
                # One that ended since the question is none that windows can come to.
                if member.is_listening:
                    reasons.append(f"{name}: does not answer")
            elif answer.status != 200:
                told = orjson.loads(answer.body)["reasons"]
                reasons += [f"{name}: {reason}" for reason in told]
        return reasons
