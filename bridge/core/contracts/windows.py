"""What a page and the bridge say to each other, besides the messages themselves."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from bridge.core.contracts.base import (
    POSITION_TEXT,
    USER_TEXT,
    Contract,
    User,
    explained,
    listed,
)
from bridge.enums import Closing, EventError, Refusal, SyncReason


class TokenClaims(Contract):
    """
    The claims of a token that the bridge looks at; others are allowed and ignored.

    The signature must be made with one of BRIDGE_JWT_ALGORITHMS.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"sub": "alice", "exp": 1767225600},
                {
                    "sub": "bob@example.org",
                    "exp": 1767225600,
                    "nbf": 1767222000,
                    "aud": ["bridge"],
                    "iss": "https://id.example.org",
                },
            ]
        }
    )

    sub: User = Field(description=f"The user. {USER_TEXT}")
    exp: float = Field(
        ge=0,
        lt=253402300800,  # the year 10000, as in core/access.py
        allow_inf_nan=False,
        description="Unix time in seconds at which the token's life ends, and with it its "
        "windows.",
    )
    nbf: float | SkipJsonSchema[None] = Field(
        None, description="Unix time in seconds before which it is not accepted."
    )
    aud: str | list[str] | SkipJsonSchema[None] = Field(
        None,
        description="Who it is for; demanded, and to hold one of BRIDGE_JWT_AUDIENCE, if "
        "that is set.",
    )
    iss: str | SkipJsonSchema[None] = Field(
        None,
        description="Who made it; demanded, and to be BRIDGE_JWT_ISSUER, if that is set.",
    )


class ConnectAuth(Contract):
    """
    What comes in `auth` when a page connects: `io(url, {auth: {token}})`.

    Other fields are ignored: client libraries add their own.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"token": "header.claims.signature"},
                {"token": "header.claims.signature", "acks": "manual"},
                {
                    "token": "header.claims.signature",
                    "pid": "k3x9-40.Zm9vYmFy",
                    "offset": "k3x9-41",
                },
            ]
        }
    )

    token: str | None = Field(
        None,
        description="The JWT. A cookie or `Authorization: Bearer` also serve.",
    )
    acks: Literal["auto", "manual"] | SkipJsonSchema[None] = Field(
        None,
        description="`auto`, the default: written to a window counts as delivered. "
        "`manual`: only what the page acks does.",
    )
    position: str | None = Field(
        None,
        description=f"Where the page is, if it kept that over a reload. {POSITION_TEXT}",
    )
    pid: str | None = Field(
        None,
        description="Added by the stock client when it reconnects: what the bridge gave "
        "it at its first connect.",
    )
    offset: str | None = Field(
        None,
        description="Added by the stock client when it reconnects: the position of the "
        "last message that it had.",
    )


# --- bridge -> page -----------------------------------------------------------------------


class Sync(Contract):
    """
    `bridge:sync`: once after each connect, when the replay is finished.

    Again only to a window that fell behind while it was live and missed something.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"replayed": 3, "complete": True, "missed": 0, "reason": None},
                {"replayed": 1000, "complete": False, "missed": 20, "reason": "limit"},
                {"replayed": 0, "complete": False, "missed": None, "reason": "reset"},
            ]
        }
    )

    replayed: int = Field(ge=0, description="Messages that the replay brought.")
    complete: bool = Field(
        description="False: something is gone, the page should reload its state."
    )
    missed: int | None = Field(
        ge=0, description="How many messages are gone; null: nobody can know."
    )
    reason: Annotated[SyncReason, listed(SyncReason)] | None = Field(
        description=explained(
            SyncReason, "Why something is gone; null: nothing is. Otherwise:"
        ),
    )


class Expiring(Contract):
    """`bridge:expiring`: the token's life ends soon; emit `bridge:refresh` with a new one."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"in_s": 60}]})

    in_s: float = Field(ge=0, description="Seconds that are left.")


class ClosingNotice(Contract):
    """`bridge:closing`: the bridge is about to close this window."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": Closing.DRAINING.value,
                    "reason": Closing.DRAINING.explanation,
                    "reconnect": True,
                }
            ]
        }
    )

    code: Annotated[Closing, listed(Closing)] = Field(
        description=explained(Closing, "Why, for programs:")
    )
    reason: str = Field(description="Why, for people.")
    reconnect: bool = Field(
        description="Whether the page should connect again with what it has."
    )


class ConnectErrorData(Contract):
    """`err.data` of the page's `connect_error`: why the window was not let in."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"code": Refusal.TOKEN_EXPIRED.value, "temporary": False}]
        }
    )

    code: Annotated[Refusal, listed(Refusal)] = Field(
        description=explained(Refusal, "Why, for programs:")
    )
    temporary: bool = Field(
        description="Whether the same page may succeed later without doing anything else."
    )


class EventReply(Contract):
    """What the callback of `ack`, `bridge:refresh` and `join` gets."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"ok": True},
                {"ok": True, "expires_in_s": 3600},
                {
                    "ok": False,
                    "code": EventError.BAD_POSITION.value,
                    "message": "ack needs the position of a message",
                },
            ]
        }
    )

    ok: bool = Field(description="Whether it was done.")
    code: Annotated[EventError, listed(EventError)] | SkipJsonSchema[None] = Field(
        None, description="Why not, for programs; only when `ok` is false."
    )
    message: str | SkipJsonSchema[None] = Field(
        None, description="Why not, for people; only when `ok` is false."
    )
    expires_in_s: int | SkipJsonSchema[None] = Field(
        None,
        description="Seconds that the new token lives; only after `bridge:refresh`.",
    )
