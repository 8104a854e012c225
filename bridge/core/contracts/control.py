"""Commands that the back end publishes to the exchange `bridge.control`: kick and revoke."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Final, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from bridge.core.contracts.base import Absent, Contract, User, examples
from bridge.core.contracts.validation import validation_problem
from bridge.core.json_text import parse_json
from bridge.core.revocation import Revocation

# pydantic accepts more: numbers, times without seconds, and others.
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII
)
_DATETIME: Final = TypeAdapter(AwareDatetime)
_BODY_MAX_BYTES: Final = 16_384
_USER_TEXT: Final = "The user, as in `sub` of the tokens."


def _parse_time(text: str) -> float:
    """Return the Unix time of an RFC 3339 time; raises ValueError for any other text."""
    with suppress(ValidationError):  # such as February 30
        if _TIME.fullmatch(text):
            return _DATETIME.validate_python(text).timestamp()
    problem = "is not a time in RFC 3339, expected for example 2026-01-31T12:00:00Z"
    raise ValueError(problem)


def _check_time(text: str) -> str:
    _parse_time(text)
    return text


Time = Annotated[
    str,
    AfterValidator(_check_time),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class RevokeRequest(Contract):
    """
    Which tokens of a user are refused, and until when.

    Without `issued_before` and `jti` every token of the user is, also a new one.
    """

    # An unknown field may be a condition that is misspelled. Without it, more tokens would
    # be refused than the sender wants.
    model_config = ConfigDict(extra="forbid") | examples(
        {"until": "2026-01-31T13:00:00Z", "issued_before": "2026-01-31T12:00:00Z"},
        {"until": "2026-01-31T13:00:00Z", "jti": "7f0c1d"},
    )

    until: Time = Field(
        description="When the revocation ends (RFC 3339): not before the last of the tokens "
        "expires."
    )
    issued_before: Time | Absent = Field(
        None,
        description="Only tokens whose `iat` is earlier (RFC 3339). Tokens without `iat` are "
        "refused, too.",
    )
    jti: Annotated[str, Field(min_length=1, max_length=1000)] | Absent = Field(
        None, description="Only the token with this `jti`."
    )

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        if self.issued_before is not None and self.jti is not None:
            problem = "issued_before and jti exclude each other"
            raise ValueError(problem)
        return self

    def revocation(self, user: str, *, now_s: float) -> Revocation:
        """Return the revocation; raises ValueError if it would be over already."""
        until_s = _parse_time(self.until)
        if until_s <= now_s:
            problem = "until is not in the future"
            raise ValueError(problem)
        before = self.issued_before
        return Revocation(
            user,
            until_s,
            issued_before_s=None if before is None else _parse_time(before),
            jti=self.jti,
            made_s=now_s,
        )


class RevokeCommand(RevokeRequest):
    """
    Routing key `revoke`: refuse tokens of a user, and close the windows that use them.

    Without `issued_before` and `jti` every token of the user is refused, also a new one.
    """

    model_config = examples(
        {
            "user": "alice",
            "issued_before": "2026-01-31T12:00:00Z",
            "until": "2026-01-31T13:00:00Z",
        },
        {"user": "alice", "jti": "7f0c1d", "until": "2026-01-31T13:00:00Z"},
    )

    user: User = Field(description=_USER_TEXT)


class KickCommand(Contract):
    """Routing key `kick`: close all windows of a user on all bridges."""

    model_config = ConfigDict(extra="forbid") | examples(
        {"user": "alice"}, {"user": "alice", "reason": "signed in elsewhere"}
    )

    user: User = Field(description=_USER_TEXT)
    reason: Annotated[str, Field(min_length=1, max_length=1000)] | Absent = Field(
        None, description="`reason` of `bridge:closing`, for people."
    )


_COMMANDS: Final[Mapping[bytes, type[KickCommand] | type[RevokeCommand]]] = {
    b"kick": KickCommand,
    b"revoke": RevokeCommand,
}


def parse_command(routing_key: bytes, body: bytes) -> KickCommand | RevokeCommand:
    """Parse a command; raises ValueError with a text that quotes no value."""
    model = _COMMANDS.get(routing_key)
    if model is None:
        problem = "the routing key is no command, known are kick and revoke"
        raise ValueError(problem)
    if len(body) > _BODY_MAX_BYTES:
        problem = f"the body has {len(body)} bytes, allowed are {_BODY_MAX_BYTES}"
        raise ValueError(problem)
    fields = parse_json(body)
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        found = validation_problem(exc, known=model.model_fields)
        raise ValueError(found.detail) from exc
