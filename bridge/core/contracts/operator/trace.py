"""`GET /api/trace/{message_id}`: the story of one message."""

from typing import Annotated, Final

from pydantic import Field

from bridge.core.contracts.base import Absent, Contract, User, listed
from bridge.core.contracts.operator.operation import Operation, Query
from bridge.enums import Fate, Stage


class TraceQuery(Query):
    """The user of the message."""

    user: User | Absent = Field(
        None,
        description="The user. Without it, the messages of all users are searched, newest "
        "first, for at most five seconds.",
    )


class TraceStep(Contract):
    """One step of a message's story."""

    at_s: float | None = Field(description="Unix time; null if unknown.")
    stage: Annotated[Stage, listed(Stage)] = Field(description="What happened.")
    text: str = Field(description="What happened, as a sentence for people.")
    position: str | None = Field(description="The position, as clients receive it.")
    windows: int | None = Field(description="How many windows it was written to.")
    bridge: str = Field(
        "",
        description="The bridge whose journal has the step, by `BRIDGE_NAME` or its host; "
        "empty if the step comes from the inbox or the broker.",
    )


class Trace(Contract):
    """What happened to a message, and what is not known about it."""

    message_id: str = Field(description="The message id of the request.")
    user: str | None = Field(description="The user, if a trace of the id is left.")
    others: list[str] = Field(
        description="Other users with a message of this id; select one with `user`."
    )
    story: list[TraceStep] = Field(description="The steps, in order of time if known.")
    fate: Annotated[Fate, listed(Fate)] = Field(description="The outcome as a word.")
    verdict: str = Field(description="The outcome as a sentence.")
    journal_since_s: float = Field(
        description="Unix time since which all bridges that answered remember retries, "
        "duplicates and windows."
    )
    looked_at: int = Field(description="How many messages of inboxes were searched.")
    silent: list[str] = Field(description="What is not known, and why, as sentences.")


GET_TRACE: Final = Operation(
    method="GET",
    path="/api/trace/{message_id}",
    name="traceMessage",
    summary="Show what happened to a message: consumed, stored, written, delivered, or why not.",
    answers={200: Trace},
    query=TraceQuery,
    path_parameters={
        "message_id": {
            "description": "The property `message_id` that it was published with, "
            "percent-encoded as UTF-8, slashes and dots too. Bytes that are not UTF-8 "
            "are written as `\\xff`.",
            "type": "string",
            "minLength": 1,
        }
    },
    problems=(503,),
)
OPERATIONS: Final = (GET_TRACE,)
