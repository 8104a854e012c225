"""Socket.IO packets between a page and the bridge, other than the messages themselves."""

from typing import Annotated, Literal

from pydantic import Field, StrictInt

from bridge.core.contracts.base import (
    POSITION_TEXT,
    USER_TEXT,
    Absent,
    AnyJson,
    Contract,
    User,
    examples,
    explained,
    listed,
)
from bridge.enums import (
    REQUEST_ERRORS,
    Closing,
    EventError,
    Refusal,
    RequestOutcome,
    SyncReason,
)


class TokenClaims(Contract):
    """
    The claims of a token that the bridge checks; others are allowed and ignored.

    The signature must be made with one of BRIDGE_JWT_ALGORITHMS.
    """

    model_config = examples(
        {"sub": "alice", "exp": 1767225600},
        {
            "sub": "bob@example.org",
            "exp": 1767225600,
            "nbf": 1767222000,
            "aud": ["bridge"],
            "iss": "https://id.example.org",
        },
    )

    sub: User | StrictInt = Field(
        description=f"The user. {USER_TEXT} An integer counts as its decimal digits."
    )
    exp: float = Field(
        ge=0,
        lt=253402300800,  # the year 10000, as in core/access.py
        allow_inf_nan=False,
        description="Unix time in seconds at which the token expires and its windows are "
        "closed.",
    )
    nbf: float | Absent = Field(
        None, description="Unix time in seconds before which the token is not accepted."
    )
    iat: float | Absent = Field(
        None,
        description="Unix time in seconds at which the token was issued. A revocation of "
        "tokens issued before some time covers tokens without it.",
    )
    jti: str | Absent = Field(
        None, description="The id of the token, by which it can be revoked alone."
    )
    aud: str | list[str] | Absent = Field(
        None,
        description="The audience; required to contain one of BRIDGE_JWT_AUDIENCE, if that is "
        "set.",
    )
    iss: str | Absent = Field(
        None,
        description="The issuer; required to be BRIDGE_JWT_ISSUER, if that is set.",
    )


class ConnectAuth(Contract):
    """
    The `auth` of a page that connects: `io(url, {auth: {token}})`.

    Other fields are ignored: client libraries add their own.
    """

    model_config = examples(
        {"token": "header.claims.signature"},
        {"token": "header.claims.signature", "acks": "manual"},
        {
            "token": "header.claims.signature",
            "pid": "k3x9-40.Zm9vYmFy",
            "offset": "k3x9-41",
        },
    )

    token: str | None = Field(
        None,
        description="The JWT. It may be in a cookie or in `Authorization: Bearer` instead.",
    )
    acks: Literal["auto", "manual"] | Absent = Field(
        None,
        description="`auto`, the default: a message counts as delivered when the page shows "
        "that it is alive after the message was written to it: it answers a ping, polls "
        "again, sends a packet or closes its connection. `manual`: only messages that the "
        "page acks do.",
    )
    position: str | None = Field(
        None,
        description=f"The last position of the page, if it kept that over a reload. {POSITION_TEXT}",
    )
    pid: str | None = Field(
        None,
        description="Added by the stock client when it reconnects: the id that the bridge sent "
        "at its first connect.",
    )
    offset: str | None = Field(
        None,
        description="Added by the stock client when it reconnects: the position of the "
        "last message that it received.",
    )


# --- bridge -> page -----------------------------------------------------------------------


class Sync(Contract):
    """
    `bridge:sync`: once after each connect, when the replay is finished.

    Sent again only to a window that fell behind while it was live and missed messages.
    """

    model_config = examples(
        {"replayed": 3, "complete": True, "missed": 0, "reason": None},
        {"replayed": 1000, "complete": False, "missed": 20, "reason": "limit"},
        {"replayed": 0, "complete": False, "missed": None, "reason": "reset"},
        {"replayed": 2, "complete": None, "missed": None, "reason": None},
    )

    replayed: int = Field(ge=0, description="Messages that the replay wrote.")
    complete: bool | None = Field(
        description="False: messages are missing, and the page should reload its state. Null: "
        "the page sent no position and no recovery id, so the bridge knows only that everything "
        "after the delivered mark of the user was sent; what was on its way to an earlier "
        "connection of this page may be missing."
    )
    missed: int | None = Field(
        ge=0, description="How many messages are missing; null: unknown."
    )
    reason: Annotated[SyncReason, listed(SyncReason)] | None = Field(
        description=explained(
            SyncReason,
            "Why messages are missing; null: none that are known. Otherwise:",
        ),
    )


class Expiring(Contract):
    """`bridge:expiring`: the token expires soon; emit `bridge:refresh` with a new one."""

    model_config = examples({"in_s": 60})

    in_s: float = Field(ge=0, description="Seconds until the token expires.")


class ClosingNotice(Contract):
    """`bridge:closing`: the bridge is about to close this window."""

    model_config = examples(
        {
            "code": Closing.DRAINING.value,
            "reason": Closing.DRAINING.explanation,
            "reconnect": True,
        }
    )

    code: Annotated[Closing, listed(Closing)] = Field(
        description=explained(Closing, "The reason, for programs:")
    )
    reason: str = Field(description="The reason, for people.")
    reconnect: bool = Field(description="Whether the page should reconnect.")


class ConnectErrorData(Contract):
    """`err.data` of the page's `connect_error`: why the window was not admitted."""

    model_config = examples({"code": Refusal.TOKEN_EXPIRED.value, "temporary": False})

    code: Annotated[Refusal, listed(Refusal)] = Field(
        description=explained(Refusal, "The reason, for programs:")
    )
    temporary: bool = Field(description="Whether the same connect may succeed later.")


class EventReply(Contract):
    """The argument of the callback of `ack`, `bridge:refresh` and `join`."""

    model_config = examples(
        {"ok": True},
        {"ok": True, "expires_in_s": 3600},
        {
            "ok": False,
            "code": EventError.BAD_POSITION.value,
            "message": "ack needs the position of a message",
        },
    )

    ok: bool = Field(description="Whether the request succeeded.")
    code: Annotated[EventError, listed(EventError)] | Absent = Field(
        None, description="The error, for programs; only if `ok` is false."
    )
    message: str | Absent = Field(
        None, description="The error, for people; only if `ok` is false."
    )
    expires_in_s: int | Absent = Field(
        None,
        description="Seconds until the new token expires; only after `bridge:refresh`.",
    )


class RequestAnswer(Contract):
    """The answer to a request from a page to a worker: the argument of its callback."""

    model_config = examples(
        {"ok": True, "data": {"canceled": 17}},
        {
            "ok": False,
            "code": RequestOutcome.UNROUTABLE.value,
            "message": RequestOutcome.UNROUTABLE.explanation,
        },
        {
            "ok": False,
            "code": RequestOutcome.REFUSED.value,
            "message": "the job has ended",
            "data": {"code": "gone", "message": "the job has ended"},
        },
    )

    ok: bool = Field(description="Whether a worker replied with data.")
    data: AnyJson | Absent = Field(
        None, description="The worker's reply, also if that is an error."
    )
    code: Annotated[RequestOutcome, listed(REQUEST_ERRORS)] | Absent = Field(
        None,
        description=explained(
            REQUEST_ERRORS, "The error, for programs; only if `ok` is false:"
        ),
    )
    message: str | Absent = Field(
        None, description="The error, for people; only if `ok` is false."
    )
