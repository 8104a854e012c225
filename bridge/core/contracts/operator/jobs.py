"""`/api/jobs`: work that takes longer than a request, and its progress."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from bridge.core.contracts.base import Contract, listed
from bridge.core.contracts.operator.operation import Operation, Page, PageQuery


class JobKind(StrEnum):
    """The kind of a job."""

    REDRIVE = "redrive"
    DISCARD = "discard"


class JobState(StrEnum):
    """The state of a job."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobFacts(Contract):
    """One job. The bridge remembers the last hundred jobs until it stops."""

    id: str = Field(description="Opaque.")
    kind: Annotated[JobKind, listed(JobKind)] = Field(description="The kind of work.")
    state: Annotated[JobState, listed(JobState)] = Field(description="Its state.")
    done: int = Field(description="Dead letters that are done.")
    total: int = Field(description="Dead letters that the job was started for.")
    failed: int = Field(description="Dead letters that failed; they stay in the queue.")
    error: str | None = Field(
        description="The error of the job or of its last failure."
    )
    started_s: float = Field(description="Unix time of the start.")
    ended_s: float | None = Field(description="Unix time of the end, if it ended.")


JOB_ID: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": 64,
    "description": "The id of the job.",
}

GET_JOBS: Final = Operation(
    method="GET",
    path="/api/jobs",
    name="listJobs",
    summary="List the jobs that the bridge remembers, newest last.",
    answers={200: Page[JobFacts]},
    query=PageQuery,
)
GET_JOB: Final = Operation(
    method="GET",
    path="/api/jobs/{id}",
    name="getJob",
    summary="Show one job and its progress.",
    answers={200: JobFacts},
    path_parameters={"id": JOB_ID},
    problems=(404,),
)
CANCEL_JOB: Final = Operation(
    method="DELETE",
    path="/api/jobs/{id}",
    name="cancelJob",
    summary="Cancel a job, and answer when it has ended. Finished work is not undone.",
    answers={200: JobFacts},
    path_parameters={"id": JOB_ID},
    problems=(404,),
)
OPERATIONS: Final = (GET_JOBS, GET_JOB, CANCEL_JOB)
