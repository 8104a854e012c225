"""`/api/dead`: list, redrive and discard dead letters."""

from collections.abc import Callable
from typing import Annotated, Final, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from bridge.core.contracts.base import Absent, Contract, explained, listed
from bridge.core.contracts.operator.jobs import JobFacts
from bridge.core.contracts.operator.operation import (
    QUERY_TEXT_MAX,
    Body,
    Operation,
    Page,
    PageQuery,
    Query,
    QueryFlag,
    QueryTime,
)
from bridge.core.dead_letter import StoredDeadLetter
from bridge.enums import DeadLetterReason

IDS_MAX: Final = 10_000
RATE_DEFAULT_PER_S: Final = 100.0
# A slower job would block other users of the queue between two dead letters.
RATE_MIN_PER_S: Final = 1.0
RATE_MAX_PER_S: Final = 100_000.0

LetterId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{24}(-[0-9]{1,9})?$")]
Reason = Annotated[DeadLetterReason, listed(DeadLetterReason)]
Text = Annotated[str, StringConstraints(max_length=QUERY_TEXT_MAX)]
_SINCE: Final = "Dead-lettered at this Unix time or later."
_UNTIL: Final = "Dead-lettered before this Unix time."


# --- answers ------------------------------------------------------------------------------


class LetterFacts(Contract):
    """One dead letter in a list."""

    id: str = Field(description="Stable while the dead letter is in the queue; opaque.")
    reason: Reason = Field(description=explained(DeadLetterReason, "Its reason:"))
    reason_text: str = Field(description="The reason as a sentence.")
    error: str = Field(description="The exact problem; may be empty.")
    user: str = Field(description="Its routing key; invalid UTF-8 is escaped.")
    event: str = Field(description="The name of its event.")
    message_id: str | None = Field(description="The producer's message id.")
    dead_s: float | None = Field(
        description="Unix time at which it became a dead letter, if known."
    )
    origin: str = Field(description="The exchange and the queue from which it came.")
    attempts: int = Field(description="How often the bridge tried to store it.")
    redrives: int = Field(description="How often it was redriven before.")
    bytes: int = Field(description="Size of the body.")


class LetterPage(Page[LetterFacts]):
    """Dead letters, oldest first."""

    total: int = Field(description="All dead letters in the queue.")
    scanned: int = Field(description="Dead letters that were examined for this page.")


class LetterDetail(LetterFacts):
    """One dead letter with all details."""

    explanation: str = Field(description="The reason and what to do, in sentences.")
    properties: dict[str, JsonValue] = Field(
        description="AMQP properties that are set."
    )
    headers: dict[str, JsonValue] = Field(
        description="All headers except for the broker's own counters."
    )
    body_text: str | None = Field(description="The body, if requested and UTF-8.")
    body_base64: str | None = Field(description="The body, if requested and not UTF-8.")


class Would(Contract):
    """The result of a dry run, which changes nothing."""

    would: int = Field(description="How many dead letters are selected.")


class JobStarted(Contract):
    """The job that was started."""

    job: JobFacts = Field(description="The job; `/api/jobs/{id}` shows its progress.")


# --- requests -----------------------------------------------------------------------------


class DeadLetterFilter(Body):
    """Selects the dead letters that meet every condition that is set."""

    reason: Annotated[str, listed(DeadLetterReason)] | None = Field(
        None, description="With this reason."
    )
    user: Text | None = Field(None, description="Of this user.")
    event: Text | None = Field(None, description="Of this event.")
    since: Annotated[float, Field(ge=0, le=1e12)] | None = Field(
        None, description=_SINCE
    )
    until: Annotated[float, Field(ge=0, le=1e12)] | None = Field(
        None, description=_UNTIL
    )

    @model_validator(mode="after")
    def _check_reason(self) -> Self:
        if self.reason is not None and self.reason not in set(DeadLetterReason):
            message = f"reason is not one of {', '.join(DeadLetterReason)}"
            raise ValueError(message)
        return self

    def matches(self, letter: StoredDeadLetter) -> bool:
        """Return whether `letter` meets every condition; one without a time meets no time."""
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.user is None or letter.user == self.user)
            and (self.event is None or letter.event == self.event)
            and self._is_in_time(letter.dead_s)
        )

    def _is_in_time(self, dead_s: float | None) -> bool:
        if dead_s is None:
            return self.since is None and self.until is None
        after = self.since is None or dead_s >= self.since
        return after and (self.until is None or dead_s < self.until)


class DeadQuery(PageQuery):
    """The conditions for the listed dead letters, and the page."""

    reason: Reason | Absent = Field(None, description="With this reason.")
    user: Text | Absent = Field(None, description="Of this user.")
    event: Text | Absent = Field(None, description="Of this event.")
    since: QueryTime | Absent = Field(None, description=_SINCE)
    until: QueryTime | Absent = Field(None, description=_UNTIL)

    @property
    def filter(self) -> DeadLetterFilter:
        """The same conditions as the body of a redrive or discard expresses them."""
        return DeadLetterFilter(**self.model_dump(exclude={"limit", "cursor"}))


class LetterQuery(Query):
    """Which details of a dead letter are returned."""

    body: QueryFlag = Field(default=False, description="Whether to return the body.")


class DeadLetterSelection(Body):
    """Selects dead letters by id, by a filter, or all of them; exactly one of the three."""

    ids: Annotated[list[LetterId], Field(min_length=1, max_length=IDS_MAX)] | None = (
        Field(None, description="The dead letters with these ids.")
    )
    filter: DeadLetterFilter | None = Field(
        None, description="Those that match; at least one of its fields must be set."
    )
    all: bool = Field(default=False, description="All that are in the queue now.")
    dry_run: bool = Field(default=False, description="Only count the dead letters.")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [self.ids is not None, self.filter is not None, self.all]
        if sum(given) != 1:
            message = "give ids, a filter, or all: true (only one of these)"
            raise ValueError(message)
        if self.filter is not None and self.filter == DeadLetterFilter():
            message = "filter is empty; all: true selects every dead letter"
            raise ValueError(message)
        return self

    def matcher(self) -> Callable[[StoredDeadLetter], bool]:
        """Return a predicate that is true for the selected dead letters."""
        if self.ids is not None:
            ids = frozenset(self.ids)
            return lambda letter: letter.id in ids
        return self.filter.matches if self.filter is not None else lambda _letter: True


class Redrive(DeadLetterSelection):
    """Send dead letters back to the inbound queue; each is confirmed before it is removed."""

    rate_per_s: float = Field(
        RATE_DEFAULT_PER_S,
        ge=RATE_MIN_PER_S,
        le=RATE_MAX_PER_S,
        allow_inf_nan=False,
        description="Maximum number of dead letters per second.",
    )


class Discard(DeadLetterSelection):
    """Delete dead letters permanently."""

    confirm: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="The number that a dry run returned; any other number is a 409.",
    )


LETTER_ID: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": 64,
    "not": {"enum": ["redrive", "discard"]},
    "description": "The id of the dead letter, from a list.",
}

GET_DEAD: Final = Operation(
    method="GET",
    path="/api/dead",
    name="listDeadLetters",
    summary="List dead letters, oldest first, without changing their order or number.",
    answers={200: LetterPage},
    query=DeadQuery,
    problems=(503,),
)
GET_LETTER: Final = Operation(
    method="GET",
    path="/api/dead/{id}",
    name="getDeadLetter",
    summary="Show one dead letter with its reason and properties, and its body if requested.",
    answers={200: LetterDetail},
    query=LetterQuery,
    path_parameters={"id": LETTER_ID},
    problems=(404, 405, 503),
)
REDRIVE: Final = Operation(
    method="POST",
    path="/api/dead/redrive",
    name="redriveDeadLetters",
    summary="Send dead letters back to the inbound queue.",
    answers={202: JobStarted, 200: Would},
    body=Redrive,
    problems=(409, 503),
)
DISCARD: Final = Operation(
    method="POST",
    path="/api/dead/discard",
    name="discardDeadLetters",
    summary="Delete dead letters permanently.",
    answers={202: JobStarted, 200: Would},
    body=Discard,
    problems=(409, 503),
)
OPERATIONS: Final = (GET_DEAD, GET_LETTER, REDRIVE, DISCARD)
