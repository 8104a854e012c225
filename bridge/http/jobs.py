"""
Jobs: work that an operator started and that takes longer than a request.

Kept in memory alone: a bridge that stops forgets them, and what they had not done is not
done. One at a time; the last hundred are remembered.
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
class Job:
    """One job, and what its work tells of itself."""

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
        """Whether nothing new should be begun."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Let the work end after what it has in hand."""
        self._cancel.set()

    def advance(
        self, *, done: int = 0, failed: int = 0, error: str | None = None
    ) -> None:
        """So many more are done, or have failed."""
        self.done += done
        self.failed += failed
        self.error = error or self.error

    async def pause(self, seconds: float) -> None:
        """Wait, unless the job is cancelled."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._cancel.wait()

    def facts(self) -> JobFacts:
        """Say how far it is."""
        return JobFacts(
            id=self.id,
            kind=self.kind,
            state=self.state,
            done=self.done,
            total=self.total,
            failed=self.failed,
            error=self.error,
            started_s=self.started_s,
            ended_s=self.ended_s,
        )


Work = Callable[[Job], Awaitable[None]]


class BusyError(BridgeError):
    """Another job is running."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id} is running; wait for it or cancel it"


class JobBoard:
    """Starts jobs, and remembers them. `run` must be running."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._number = 0

    async def run(self) -> None:
        """
        Be the parent of all jobs until cancelled.

        Cancellation:
            Cancels the job that runs.

        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await asyncio.Event().wait()

    def running(self) -> Job | None:
        """Return the job that runs, if one does."""
        for job in self._jobs.values():
            if job.state is JobState.RUNNING:
                return job
        return None

    def start(self, kind: JobKind, *, total: int, work: Work) -> Job:
        """
        Start `work` as a job.

        Raises:
            BusyError: If another one is running.

        """
        other = self.running()
        if other is not None:
            raise BusyError(other.id)
        assert self._tasks is not None, "run() comes first"  # noqa: S101 - the app sees to it
        while len(self._jobs) >= _REMEMBERED:
            del self._jobs[next(iter(self._jobs))]
        self._number += 1
        # Sorts as they were started; the rest keeps the ids of two runs apart.
        job_id = f"{self._number:06}-{uuid4().hex[:8]}"
        job = self._jobs[job_id] = Job(job_id, kind, total, time.time())
        self._tasks.create_task(self._do(job, work), name=f"job.{kind}")
        log.info("job.started", job=job_id, kind=kind, total=total)
        return job

    def get(self, job_id: str) -> Job | None:
        """Return one job, if it is remembered."""
        return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """Return all that are remembered, oldest first."""
        return list(self._jobs.values())

    async def _do(self, job: Job, work: Work) -> None:
        try:
            await work(job)
        except BridgeError as exc:
            job.state, job.error = JobState.FAILED, str(exc)
        except asyncio.CancelledError:
            job.state = JobState.CANCELLED
            raise
        except Exception as exc:
            # A bug in a job must not take the bridge down with it.
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
