"""`/api/jobs`: list jobs, show their progress, cancel them."""

import asyncio
from contextlib import suppress
from typing import Final

from bridge.core.contracts.operator.jobs import CANCEL_JOB, GET_JOB, GET_JOBS, JobFacts
from bridge.core.contracts.operator.operation import Page, PageQuery
from bridge.http.api.endpoint import Api, ApiProblem, ApiRequest
from bridge.http.api.paging import page_by_key
from bridge.http.jobs import JobBoard, OperatorJob

# How long the answer to a cancellation waits for the job's work in flight.
_ENDS_WITHIN_S: Final = 20.0


def add_job_routes(api: Api, board: JobBoard) -> None:
    """Serve the jobs on `board`."""

    async def list_jobs(request: ApiRequest[PageQuery]) -> Page[JobFacts]:
        page, following = page_by_key(
            (job.facts() for job in board.all()),
            key=lambda job: job.id,
            after=request.query.cursor,
            limit=request.query.limit,
        )
        return Page[JobFacts](items=page, next=following)

    async def get_job(request: ApiRequest) -> JobFacts:
        return _job(board, request.path["id"]).facts()

    async def cancel_job(request: ApiRequest) -> JobFacts:
        job = _job(board, request.path["id"])
        if not job.ended.is_set():
            job.cancel()
        with suppress(TimeoutError):  # then the answer shows that it is still running
            async with asyncio.timeout(_ENDS_WITHIN_S):
                await job.ended.wait()
        return job.facts()

    api.add(GET_JOBS, list_jobs)
    api.add(GET_JOB, get_job)
    api.add(CANCEL_JOB, cancel_job)


def _job(board: JobBoard, job_id: str) -> OperatorJob:
    job = board.get(job_id)
    if job is None:
        detail = "there is no such job; jobs are not kept when the bridge stops"
        raise ApiProblem(404, detail, pointer="id")
    return job
