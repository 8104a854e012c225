"""
The closed lists that clients of bridge can see: events, headers, reasons, codes.

Each name that a worker, a page or an operator can meet is declared here once. A test
compares the tables in README with these lists.
"""

from enum import StrEnum
from typing import Final

# --- Socket.IO events -----------------------------------------------------------------

EVENT_DEFAULT: Final = "message"
EVENT_SYNC: Final = "bridge:sync"
EVENT_EXPIRING: Final = "bridge:expiring"
EVENT_CLOSING: Final = "bridge:closing"

# Events that a page may emit to the bridge.
EVENT_ACK: Final = "ack"
EVENT_JOIN: Final = "join"
EVENT_REFRESH: Final = "bridge:refresh"

RESERVED_PREFIX: Final = "bridge:"
RESERVED_EVENTS: Final = frozenset(
    {
        # The socket.io client throws when a page emits these, and uses them for
        # its own life-cycle events.
        "connect",
        "connect_error",
        "disconnect",
        "disconnecting",
        "newListener",
        "removeListener",
        # A page sends these to the bridge.
        EVENT_ACK,
        EVENT_JOIN,
    }
)


# --- headers of AMQP messages ---------------------------------------------------------

HEADER_PREFIX: Final = "x-bridge-"


class Header(StrEnum):
    """A header that the bridge writes when it publishes a message again."""

    REASON = "x-bridge-reason"
    ERROR = "x-bridge-error"
    TIME = "x-bridge-time"
    ORIGIN_EXCHANGE = "x-bridge-origin-exchange"
    ORIGIN_QUEUE = "x-bridge-origin-queue"
    ROUTING_KEY = "x-bridge-routing-key"
    ATTEMPT = "x-bridge-attempt"
    DEADLINE = "x-bridge-deadline"
    EXPIRATION = "x-bridge-expiration"
    USER_ID = "x-bridge-user-id"
    HEADERS_DROPPED = "x-bridge-headers-dropped"
    DEAD_LETTER_ID = "x-bridge-letter"
    REDRIVES = "x-bridge-redrives"
    REDRIVEN_ID = "x-bridge-redriven-id"


# Written by RabbitMQ's message interceptor and by OpenTelemetry's libraries.
HEADER_PUBLISHED_MS: Final = "timestamp_in_ms"
HEADER_TRACE_PARENT: Final = "traceparent"


# --- reasons and codes ----------------------------------------------------------------


class DeadLetterReason(StrEnum):
    """Why the bridge moved a delivery to the dead letter queue."""

    MALFORMED_BODY = "malformed_body"
    TOO_LARGE = "too_large"
    BAD_USER = "bad_user"
    BAD_EVENT = "bad_event"
    SCHEMA = "schema"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    CRASHED = "crashed"

    @property
    def explanation(self) -> str:
        """One sentence for an operator."""
        return _REASON_EXPLANATIONS[self]


_REASON_EXPLANATIONS: Final = {
    DeadLetterReason.MALFORMED_BODY: (
        "the body is not one JSON value in UTF-8 (or text, with content type text/plain)"
    ),
    DeadLetterReason.TOO_LARGE: "the body is larger than BRIDGE_MAX_MESSAGE_BYTES",
    DeadLetterReason.BAD_USER: (
        "the routing key is not a user: 1 to 255 bytes of UTF-8 without control characters"
    ),
    DeadLetterReason.BAD_EVENT: (
        "the property type is not an event name: reserved, over 128 characters, "
        "or not printable UTF-8"
    ),
    DeadLetterReason.SCHEMA: (
        "the event's schema in BRIDGE_SCHEMAS does not allow the data, or the event has "
        "no schema there and BRIDGE_SCHEMAS_UNKNOWN=dead"
    ),
    DeadLetterReason.ATTEMPTS_EXHAUSTED: (
        "storing the message failed with an unexpected error, at each attempt of "
        "BRIDGE_RETRY_DELAYS"
    ),
    DeadLetterReason.CRASHED: (
        "bridge crashed more than once while it handled only this message"
    ),
}


class DeadLetterCause(StrEnum):
    """
    Why a message is in the dead letter queue, as operators see it.

    These are the reasons of the bridge and those of RabbitMQ.
    """

    MALFORMED_BODY = DeadLetterReason.MALFORMED_BODY.value
    TOO_LARGE = DeadLetterReason.TOO_LARGE.value
    BAD_USER = DeadLetterReason.BAD_USER.value
    BAD_EVENT = DeadLetterReason.BAD_EVENT.value
    SCHEMA = DeadLetterReason.SCHEMA.value
    ATTEMPTS_EXHAUSTED = DeadLetterReason.ATTEMPTS_EXHAUSTED.value
    CRASHED = DeadLetterReason.CRASHED.value
    EXPIRED = "expired"
    OTHER = "other"

    @property
    def explanation(self) -> str:
        """One sentence for an operator."""
        if self in _BROKER_CAUSES:
            return _BROKER_CAUSES[self]
        return DeadLetterReason(self.value).explanation


_BROKER_CAUSES: Final = {
    DeadLetterCause.EXPIRED: (
        "it expired while it waited in a queue, and RabbitMQ dead-lettered it"
    ),
    DeadLetterCause.OTHER: (
        "neither the bridge nor an expiry put it here; its headers may name the cause"
    ),
}


class Refusal(StrEnum):
    """Why a window was refused: `err.data.code` of the page's `connect_error`."""

    TOKEN_MISSING = "token_missing"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_INVALID = "token_invalid"
    KEYS_UNAVAILABLE = "keys_unavailable"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    TOO_MANY_WINDOWS = "too_many_windows"
    BAD_REQUEST = "bad_request"
    NOT_AVAILABLE = "not_available"
    DRAINING = "draining"

    @property
    def is_temporary(self) -> bool:
        """Whether the same connect may succeed later."""
        return self in _TEMPORARY_REFUSALS

    @property
    def explanation(self) -> str:
        """One sentence for the author of the page."""
        return _REFUSAL_EXPLANATIONS[self]


_TEMPORARY_REFUSALS: Final = frozenset(
    {
        Refusal.KEYS_UNAVAILABLE,
        Refusal.TOO_MANY_WINDOWS,
        Refusal.NOT_AVAILABLE,
        Refusal.DRAINING,
    }
)
_REFUSAL_EXPLANATIONS: Final = {
    Refusal.TOKEN_MISSING: "no token came with the connection: pass auth: {token}",
    Refusal.TOKEN_EXPIRED: "the token is past its exp: get a new one and connect again",
    Refusal.TOKEN_INVALID: "the token was not accepted: signature, algorithm, claims or user",
    Refusal.KEYS_UNAVAILABLE: "the keys that check the token cannot be fetched now",
    Refusal.ORIGIN_NOT_ALLOWED: "pages of this origin may not connect: see BRIDGE_ALLOWED_ORIGINS",
    Refusal.TOO_MANY_WINDOWS: "the user or the address has too many windows open",
    Refusal.BAD_REQUEST: "the bridge cannot read the value of auth",
    Refusal.NOT_AVAILABLE: "the inbox store cannot be reached now",
    Refusal.DRAINING: "this bridge is shutting down: connect again",
}


class Closing(StrEnum):
    """Why the bridge closes a window: `code` of the event `bridge:closing`."""

    EXPIRED = "expired"
    SLOW = "slow"
    DRAINING = "draining"
    KICKED = "kicked"
    FLOODING = "flooding"
    UNAVAILABLE = "unavailable"

    @property
    def reconnect(self) -> bool:
        """Whether the page should connect again at once."""
        return self in _CLOSINGS_THAT_RECONNECT

    @property
    def explanation(self) -> str:
        """One sentence for the author of the page."""
        return _CLOSING_EXPLANATIONS[self]


_CLOSINGS_THAT_RECONNECT: Final = frozenset(
    {Closing.SLOW, Closing.DRAINING, Closing.UNAVAILABLE}
)
_CLOSING_EXPLANATIONS: Final = {
    Closing.EXPIRED: "the token expired: connect again with a new one",
    Closing.SLOW: "the window read too slowly; it receives the missed messages when it reconnects",
    Closing.DRAINING: "this bridge is shutting down; the window continues at another one",
    Closing.KICKED: "an operator closed the user's windows",
    Closing.FLOODING: "the window sent too many events",
    Closing.UNAVAILABLE: "the inbox could not be read; the window reconnects",
}


class SyncReason(StrEnum):
    """Why messages are missing: `reason` of the event `bridge:sync`."""

    EXPIRED = "expired"
    LIMIT = "limit"
    RESET = "reset"

    @property
    def explanation(self) -> str:
        """One sentence for the author of the page."""
        return _SYNC_EXPLANATIONS[self]


_SYNC_EXPLANATIONS: Final = {
    SyncReason.EXPIRED: "messages expired before they were delivered",
    SyncReason.LIMIT: "the inbox holds no more than BRIDGE_INBOX_MAX_MESSAGES for a user",
    SyncReason.RESET: "the position belongs to another store, or lies beyond the end of the inbox",
}


class EventError(StrEnum):
    """Why an event of a page was refused: `code` of the reply `{ok: false, code}`."""

    BAD_POSITION = "bad_position"
    NOT_MANUAL = "not_manual"
    TOKEN_INVALID = "token_invalid"
    TOKEN_EXPIRED = "token_expired"
    OTHER_USER = "other_user"
    NOT_OPEN = "not_open"
    BAD_USER = "bad_user"
    KEYS_UNAVAILABLE = "keys_unavailable"
    NOT_AVAILABLE = "not_available"


class Outcome(StrEnum):
    """How a delivery was settled: a label of `bridge_deliveries_settled_total`."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    DEAD_LETTER = "dead_letter"
    RETRY = "retry"
    EXPIRED = "expired"
    STALE = "stale"


class Stage(StrEnum):
    """A step in the life of a message, as `bridge trace` shows it."""

    PUBLISHED = "published"
    TAKEN = "taken"
    STORED = "stored"
    DUPLICATE = "duplicate"
    WRITTEN = "written"
    DELIVERED = "delivered"
    WAITING = "waiting"
    EXPIRED = "expired"
    TRIMMED = "trimmed"
    RETRIED = "retried"
    DEAD = "dead"
    REDRIVEN = "redriven"


class Fate(StrEnum):
    """The state of a message, as `bridge trace` sums it up."""

    DELIVERED = "delivered"
    WAITING = "waiting"
    EXPIRED = "expired"
    TRIMMED = "trimmed"
    DEAD = "dead"
    RETRYING = "retrying"
    ON_ITS_WAY = "on_its_way"
    UNKNOWN = "unknown"

    @property
    def explanation(self) -> str:
        """One sentence for an operator."""
        return _FATE_EXPLANATIONS[self]


_FATE_EXPLANATIONS: Final = {
    Fate.DELIVERED: "the user has received it: the delivered mark is at it or after it",
    Fate.WAITING: "it is in the inbox, and the verdict names the cause of the wait",
    Fate.EXPIRED: "it expired before a window received it",
    Fate.TRIMMED: "it was stored and later deleted, because of the limit or its age",
    Fate.DEAD: "it is a dead letter",
    Fate.RETRYING: "storing it failed; it waits in a retry queue for the next attempt",
    Fate.ON_ITS_WAY: "the broker confirmed it and the bridge has not consumed it yet",
    Fate.UNKNOWN: "neither the inbox, the journals nor the dead letters have a trace of it",
}


class ExitCode:
    """The exit statuses of the commands."""

    DONE: Final = 0
    FAILED: Final = 1
    USAGE: Final = 2
    UNREACHABLE: Final = 3
