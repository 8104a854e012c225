"""
Jobs: work that an operator started and that takes longer than a request.

Jobs live in memory only. A bridge that stops forgets them, and the rest of their work is not
done. One job runs at a time, and the last hundred are remembered.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

import structlog

from bridge.core.contracts.operator.jobs import JobFacts, JobKind, JobState
from bridge.errors import BridgeError

log = structlog.get_logger(__name__)

_REMEMBERED: Final = 100


@dataclass
class OperatorJob:
    """One job, and the progress that its work reports."""

    id: str
    kind: JobKind
    total: int
    started_s: float
    state: JobState = JobState.RUNNING
    done: int = 0
    failed: int = 0
    error: str | None = None
    ended_s: float | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _cancel: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_cancelled(self) -> bool:
        """Whether the work should start nothing new."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Ask the work to end after the items that are in flight."""
        self._cancel.set()

    def advance(
        self, *, done: int = 0, failed: int = 0, error: str | None = None
    ) -> None:
        """Add to the number of items that are done or have failed."""
        self.done += done
        self.failed += failed
        self.error = error or self.error

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until the job is canceled."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._cancel.wait()

    def facts(self) -> JobFacts:
        """Return the job as the API shows it."""
        return JobFacts.model_validate(self, from_attributes=True)


Work = Callable[[OperatorJob], Awaitable[None]]


class BusyError(BridgeError):
    """Another job is running."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id} is running; wait for it or cancel it"


class JobBoard:
    """Starts jobs and remembers them, while `run` is running."""

    def __init__(self) -> None:
        self._jobs: dict[str, OperatorJob] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._number = 0

    async def run(self) -> None:
        """
        Be the parent task of all jobs until canceled.

        Cancellation:
            Cancels the running job.

        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await asyncio.Event().wait()

    def running(self) -> OperatorJob | None:
        """Return the running job; ``None`` if there is none."""
        for job in self._jobs.values():
            if job.state is JobState.RUNNING:
                return job
        return None

    def start(self, kind: JobKind, *, total: int, work: Work) -> OperatorJob:
        """
        Start `work` as a job.

        Raises:
            BusyError: If another job is running.

        """
        other = self.running()
        if other is not None:
            raise BusyError(other.id)
        assert self._tasks is not None, "run() was not called"  # noqa: S101 - Bridge starts it first
        while len(self._jobs) >= _REMEMBERED:
            del self._jobs[next(iter(self._jobs))]
        self._number += 1
        # The number sorts ids by start; the random part keeps ids unique across restarts.
        job_id = f"{self._number:06}-{uuid4().hex[:8]}"
        job = self._jobs[job_id] = OperatorJob(job_id, kind, total, time.time())
        self._tasks.create_task(self._do(job, work), name=f"job.{kind}")
        log.info("job.started", job=job_id, kind=kind, total=total)
        return job

    def get(self, job_id: str) -> OperatorJob | None:
        """Return one job; ``None`` if it is not remembered."""
        return self._jobs.get(job_id)

    def all(self) -> list[OperatorJob]:
        """Return the remembered jobs, oldest first."""
        return list(self._jobs.values())

    async def _do(self, job: OperatorJob, work: Work) -> None:
        try:
            await work(job)
        except BridgeError as exc:
            job.state, job.error = JobState.FAILED, str(exc)
        except asyncio.CancelledError:
            job.state = JobState.CANCELLED
            raise
        except Exception as exc:
            # A bug in a job must not end the bridge, which shares its task group.
            log.exception("job.failed", job=job.id, kind=job.kind)
            job.state, job.error = JobState.FAILED, f"{type(exc).__name__}: {exc}"
        else:
            job.state = JobState.CANCELLED if job.is_cancelled else JobState.DONE
        finally:
            job.ended_s = time.time()
            job.ended.set()
            log.info(
                "job.ended",
                job=job.id,
                state=job.state,
                done=job.done,
                failed=job.failed,
                error=job.error,
            )
