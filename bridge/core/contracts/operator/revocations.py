"""`/api/revocations`: revoke tokens of a user, list what is revoked."""

from typing import Final

from pydantic import Field

from bridge.core.contracts.base import Absent, Contract
from bridge.core.contracts.control import RevokeRequest
from bridge.core.contracts.operator.operation import Operation, Page, PageQuery
from bridge.core.contracts.operator.users import USER_PARAMETER
from bridge.core.message import USER_MAX_BYTES


class RevocationsQuery(PageQuery):
    """The user of the listed revocations, and the page."""

    user: str | Absent = Field(
        None, max_length=USER_MAX_BYTES, description="Only revocations of this user."
    )


class RevocationFacts(Contract):
    """One revocation; it covers all tokens of the user if it names no condition."""

    user: str = Field(description="The user.")
    until_s: float = Field(description="Unix time of its end.")
    issued_before_s: float | None = Field(
        description="Unix time: only tokens that were issued earlier, or that name no time."
    )
    jti: str | None = Field(description="Only the token with this `jti`.")
    made_s: float = Field(description="Unix time at which it was made.")


LIST_REVOCATIONS: Final = Operation(
    method="GET",
    path="/api/revocations",
    name="listRevocations",
    summary="List the revocations that are in force, by user.",
    answers={200: Page[RevocationFacts]},
    query=RevocationsQuery,
    problems=(503,),
)
REVOKE_USER: Final = Operation(
    method="POST",
    path="/api/users/{user}/revoke",
    name="revokeUser",
    summary="Refuse tokens of a user on all bridges, and close the windows that use them.",
    answers={200: RevocationFacts},
    body=RevokeRequest,
    path_parameters={"user": USER_PARAMETER},
    problems=(503,),
)
OPERATIONS: Final = (LIST_REVOCATIONS, REVOKE_USER)
