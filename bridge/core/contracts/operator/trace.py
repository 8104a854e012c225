"""`GET /api/trace/{message_id}`: the story of one message."""

from typing import Annotated, Final

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from bridge.core.contracts.base import Contract, User, listed
from bridge.core.contracts.operator.operation import NoBody, Operation, Query
from bridge.enums import Fate, Stage


class TraceQuery(Query):
    """Whose message it is."""

    user: User | SkipJsonSchema[None] = Field(
        None,
        description="Whose. Without it all messages are looked at, for five seconds at "
        "most, the newest first.",
    )


class TraceStep(Contract):
    """One step of a message's story."""

    at_s: float | None = Field(description="When; null if nobody knows.")
    stage: Annotated[Stage, listed(Stage)] = Field(description="What it is.")
    text: str = Field(description="The same for a person.")
    position: str | None = Field(description="In the inbox, as pages know it.")
    windows: int | None = Field(description="To how many it was written, if it was.")
    bridge: str = Field(
        "",
        description="Which bridge remembers it, by `BRIDGE_NAME` or its host; empty if it "
        "stands in the inbox or with the broker.",
    )


class Trace(Contract):
    """What became of a message."""

    message_id: str = Field(description="As it was asked for.")
    user: str | None = Field(description="Whose; null if no trace of the id is left.")
    others: list[str] = Field(
        description="Other users with a message of this id; ask for each by `user`."
    )
    story: list[TraceStep] = Field(description="In order of time, as far as known.")
    fate: Annotated[Fate, listed(Fate)] = Field(description="How it stands, in a word.")
    verdict: str = Field(description="How it stands, in a sentence.")
    journal_since_s: float = Field(
        description="Since when retries, duplicates and windows are remembered, by all "
        "bridges that answered."
    )
    looked_at: int = Field(description="How many kept messages were looked at.")
    silent: list[str] = Field(description="What nobody knows, and why.")


GET_TRACE: Final = Operation(
    method="GET",
    path="/api/trace/{message_id}",
    name="traceMessage",
    summary="The story of a message: taken, stored, written, delivered or why not.",
    answers={200: Trace},
    query=TraceQuery,
    body=NoBody,
    path_parameters={
        "message_id": {
            "description": "The property `message_id` that it was published with, "
            "percent-encoded as UTF-8, slashes and dots too. Bytes that are no UTF-8 "
            "are written as `\\xff`.",
            "type": "string",
            "minLength": 1,
        }
    },
    problems=(503,),
)
OPERATIONS: Final = (GET_TRACE,)
