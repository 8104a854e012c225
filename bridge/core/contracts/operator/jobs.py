"""`/api/jobs`: work that takes longer than a request, with its progress."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from bridge.core.contracts.base import Contract, listed
from bridge.core.contracts.operator.operation import (
    NoBody,
    NoQuery,
    Operation,
    Page,
    PageQuery,
)


class JobKind(StrEnum):
    """What a job does."""

    REDRIVE = "redrive"
    DISCARD = "discard"


class JobState(StrEnum):
    """How far a job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobFacts(Contract):
    """One job. The bridge forgets it when it stops, and old ones by and by."""

    id: str = Field(description="Opaque.")
    kind: Annotated[JobKind, listed(JobKind)] = Field(description="What it does.")
    state: Annotated[JobState, listed(JobState)] = Field(description="How far it is.")
    done: int = Field(description="Letters that it has dealt with.")
    total: int = Field(description="Letters that it is about.")
    failed: int = Field(description="Letters that it could not deal with; they stay.")
    error: str | None = Field(
        description="Why the job, or its last failed letter, failed."
    )
    started_s: float = Field(description="Unix time.")
    ended_s: float | None = Field(description="Unix time; null while it runs.")


JOB_ID: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": 64,
    "description": "The job's id.",
}

GET_JOBS: Final = Operation(
    method="GET",
    path="/api/jobs",
    name="listJobs",
    summary="The jobs that the bridge remembers, newest last.",
    answers={200: Page[JobFacts]},
    query=PageQuery,
    body=NoBody,
)
GET_JOB: Final = Operation(
    method="GET",
    path="/api/jobs/{id}",
    name="getJob",
    summary="One job and its progress.",
    answers={200: JobFacts},
    query=NoQuery,
    body=NoBody,
    path_parameters={"id": JOB_ID},
    problems=(404,),
)
CANCEL_JOB: Final = Operation(
    method="DELETE",
    path="/api/jobs/{id}",
    name="cancelJob",
    summary="Cancel a job; what it has done stays done. Answers when it has ended.",
    answers={200: JobFacts},
    query=NoQuery,
    body=NoBody,
    path_parameters={"id": JOB_ID},
    problems=(404,),
)
OPERATIONS: Final = (GET_JOBS, GET_JOB, CANCEL_JOB)
