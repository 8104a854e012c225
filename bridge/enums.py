"""
The closed lists that clients of bridge can see: events, headers, reasons, codes.

Each name that a worker, a page or an operator can meet is declared here once. A test
compares the tables in docs/reference.md with these lists.
"""

from enum import StrEnum
from typing import Final, Self

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


class OptionHeader(StrEnum):
    """A header by which a producer says how a message is delivered."""

    EPHEMERAL = "x-bridge-ephemeral"
    KEY = "x-bridge-key"
    THROTTLE = "x-bridge-throttle"
    RETAIN = "x-bridge-retain"
    CLEAR = "x-bridge-clear"
    RECEIPT = "x-bridge-receipt"
    UNDELIVERED_AFTER = "x-bridge-undelivered-after"


# Of requests from pages to workers. Only bridge may publish to their exchange.
HEADER_USER: Final = "x-bridge-user"
HEADER_WINDOW: Final = "x-bridge-window"
# The property `type` of a worker's reply that reports an error.
REPLY_TYPE_ERROR: Final = "error"

# Written by RabbitMQ's message interceptor and by OpenTelemetry's libraries.
HEADER_PUBLISHED_MS: Final = "timestamp_in_ms"
HEADER_TRACE_PARENT: Final = "traceparent"


# --- reasons and codes ----------------------------------------------------------------


class _ExplainedEnum(StrEnum):
    """Values with a sentence for the reader: an operator or the author of a page."""

    explanation: str

    def __new__(cls, value: str, explanation: str = "") -> Self:
        # `explanation` has a default only for the lookup by value, as in Refusal("slow").
        member = str.__new__(cls, value)
        member._value_ = value
        member.explanation = explanation
        return member


_FIX_THE_PRODUCER: Final = (
    "A redrive would fail in the same way: fix the producer, and discard this one."
)


class DeadLetterReason(_ExplainedEnum):
    """Why a message is in the dead letter queue, and what an operator can do about it."""

    advice: str

    def __new__(cls, value: str, explanation: str = "", advice: str = "") -> Self:
        """Make a member; the texts are absent only in the lookup by value."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.explanation = explanation
        member.advice = advice
        return member

    MALFORMED_BODY = (
        "malformed_body",
        "the body is not one JSON value in UTF-8 (or text, with content type "
        "text/plain)",
        _FIX_THE_PRODUCER,
    )
    TOO_LARGE = (
        "too_large",
        "the body is larger than BRIDGE_MAX_MESSAGE_BYTES",
        "Raise BRIDGE_MAX_MESSAGE_BYTES and redrive it, or discard it.",
    )
    BAD_USER = (
        "bad_user",
        "the routing key is not a user: 1 to 255 bytes of UTF-8 without control "
        "characters",
        _FIX_THE_PRODUCER,
    )
    BAD_ROUTE = (
        "bad_route",
        "the message does not name one user: it was published straight into a queue, or the "
        "header CC routes it to more users",
        "It cannot be redriven: publish its body to each user, and discard this one.",
    )
    BAD_EVENT = (
        "bad_event",
        "the property type is not an event name: reserved, over 128 characters, "
        "or not printable UTF-8",
        _FIX_THE_PRODUCER,
    )
    BAD_HEADER = (
        "bad_header",
        "a header that begins with x-bridge- has an invalid value",
        _FIX_THE_PRODUCER,
    )
    TOO_MANY_RETAINED = (
        "too_many_retained",
        "the message has a new key with x-bridge-retain, and the user has "
        "BRIDGE_MAX_RETAINED retained keys already",
        "Clear keys that are no longer needed, or raise BRIDGE_MAX_RETAINED; then redrive it.",
    )
    SCHEMA = (
        "schema",
        "the event's schema in BRIDGE_SCHEMAS does not allow the data, or the "
        "event has no schema there and BRIDGE_SCHEMAS_UNKNOWN=dead",
        "Fix the schema in BRIDGE_SCHEMAS and redrive it, or fix the producer and discard it.",
    )
    ATTEMPTS_EXHAUSTED = (
        "attempts_exhausted",
        "storing the message failed with an unexpected error, at each attempt "
        "of BRIDGE_RETRY_DELAYS",
        "The log of that time shows the failure: fix its cause, then redrive it.",
    )
    CRASHED = (
        "crashed",
        "bridge crashed more than once while it handled only this message",
        "Keep its body to reproduce the bug in the bridge; redrive it only after a fix.",
    )

    # The bridge writes none of these into the header: see `is_of_bridge`.
    EXPIRED = (
        "expired",
        "it expired while it waited in a queue, and RabbitMQ dead-lettered it",
        "A redrive restarts its time to live; discard it if it is no longer useful.",
    )
    UNROUTED = (
        "unrouted",
        "no inbound queue existed when it arrived, and RabbitMQ dead-lettered it",
        "Redrive it when the bridge is ready again: its queue exists then.",
    )
    OTHER = (
        "other",
        "it was dead-lettered neither by bridge nor because it expired; its headers may name "
        "the cause. From the queue of commands: bridge refused the command",
        "Read its headers before a redrive. A command cannot be redriven: publish it again.",
    )

    @property
    def is_of_bridge(self) -> bool:
        """Whether the bridge dead-letters messages for this reason, and not RabbitMQ."""
        return self not in {
            DeadLetterReason.EXPIRED,
            DeadLetterReason.UNROUTED,
            DeadLetterReason.OTHER,
        }


REASONS_OF_BRIDGE: Final = tuple(one for one in DeadLetterReason if one.is_of_bridge)


class Refusal(_ExplainedEnum):
    """Why a window was refused: `err.data.code` of the page's `connect_error`."""

    TOKEN_MISSING = (
        "token_missing",
        "the connection has no token: pass auth: {token}",
    )
    TOKEN_EXPIRED = (
        "token_expired",
        "the token is past its exp: get a new one and connect again",
    )
    TOKEN_NOT_YET_VALID = (
        "token_not_yet_valid",
        "nbf or iat of the token is in the future: compare the clocks of the issuer and of the bridge",
    )
    TOKEN_INVALID = (
        "token_invalid",
        "the token was not accepted: signature, algorithm, claims or user",
    )
    TOKEN_REVOKED = (
        "token_revoked",
        "the token was revoked: sign in again",
    )
    KEYS_UNAVAILABLE = (
        "keys_unavailable",
        "the keys that check the token cannot be fetched now",
    )
    ORIGIN_NOT_ALLOWED = (
        "origin_not_allowed",
        "pages of this origin may not connect: see BRIDGE_ALLOWED_ORIGINS",
    )
    TOO_MANY_WINDOWS = (
        "too_many_windows",
        "the user or the address has too many windows open",
    )
    TOO_MANY_ATTEMPTS = (
        "too_many_attempts",
        "too many invalid tokens came from this address: connect again later",
    )
    BAD_REQUEST = "bad_request", "the bridge cannot read the value of auth"
    BINARY_NOT_SUPPORTED = (
        "binary_not_supported",
        "binary data is not supported: use the parser that is built into the client, not "
        "msgpack",
    )
    NOT_AVAILABLE = "not_available", "the inbox store cannot be reached now"
    DRAINING = "draining", "this bridge is shutting down: connect again"

    @property
    def is_temporary(self) -> bool:
        """Whether the same connect may succeed later."""
        return self in {
            Refusal.TOKEN_NOT_YET_VALID,
            Refusal.KEYS_UNAVAILABLE,
            Refusal.TOO_MANY_WINDOWS,
            Refusal.TOO_MANY_ATTEMPTS,
            Refusal.NOT_AVAILABLE,
            Refusal.DRAINING,
        }


class ConnectionRefusal(_ExplainedEnum):
    """Why a TCP connection was closed before it was served."""

    DESCRIPTORS = (
        "descriptors",
        "almost no file descriptors are left: raise their limit (ulimit -n, LimitNOFILE)",
    )
    ADDRESS = (
        "address",
        "its address has too many connections: see BRIDGE_MAX_WINDOWS_PER_ADDRESS, and "
        "list your proxies in BRIDGE_TRUSTED_PROXIES",
    )
    NO_REQUEST = "no_request", "no complete request came in BRIDGE_CONNECT_TIMEOUT"
    TLS = "tls", "the TLS handshake failed; the log has the reason at level debug"


class UnsupportedClient(_ExplainedEnum):
    """Which version of Engine.IO a refused client speaks."""

    ENGINE_3 = (
        "3",
        "the client is socket.io-client 2 or older, or uses its protocol: use version 3 or later",
    )
    OTHER = "other", "the request names no known version of the protocol"


class Closing(_ExplainedEnum):
    """Why the bridge closes a window: `code` of the event `bridge:closing`."""

    EXPIRED = "expired", "the token expired: connect again with a new one"
    SLOW = (
        "slow",
        "the window read too slowly; it receives the missed messages when it "
        "reconnects",
    )
    DRAINING = (
        "draining",
        "this bridge is shutting down; the window can reconnect to another one",
    )
    KICKED = "kicked", "an operator closed the user's windows"
    REVOKED = "revoked", "the token of the window was revoked: sign in again"
    FLOODING = "flooding", "the window sent too many events"
    BINARY_NOT_SUPPORTED = (
        "binary_not_supported",
        "the window sent binary data (a Buffer, ArrayBuffer or Blob): send JSON",
    )
    UNAVAILABLE = "unavailable", "the inbox could not be read; the window reconnects"

    @property
    def reconnect(self) -> bool:
        """Whether the page should connect again at once."""
        return self in {
            Closing.SLOW,
            Closing.DRAINING,
            Closing.BINARY_NOT_SUPPORTED,
            Closing.UNAVAILABLE,
        }


class SyncReason(_ExplainedEnum):
    """Why messages are missing: `reason` of the event `bridge:sync`."""

    EXPIRED = "expired", "messages expired before they were delivered"
    LIMIT = "limit", "the inbox holds no more than BRIDGE_INBOX_MAX_MESSAGES for a user"
    RESET = (
        "reset",
        "the position belongs to another store, or is beyond the end of the inbox; or "
        "the store lost messages",
    )


class EventError(StrEnum):
    """Why an event of a page was refused: `code` of the reply `{ok: false, code}`."""

    BAD_POSITION = "bad_position"
    NOT_MANUAL = "not_manual"
    TOKEN_INVALID = "token_invalid"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_REVOKED = "token_revoked"
    OTHER_USER = "other_user"
    NOT_OPEN = "not_open"
    BAD_USER = "bad_user"
    KEYS_UNAVAILABLE = "keys_unavailable"
    NOT_AVAILABLE = "not_available"


class RequestOutcome(_ExplainedEnum):
    """
    How a request from a page ended: a label of `bridge_requests_total`.

    Those that are errors are also `code` of the answer `{ok: false, code, message}`.
    """

    ANSWERED = "answered", "a worker replied with data"
    SENT = "sent", "the page expects no answer, and the broker has the request"
    LEFT = "left", "the page disconnected before its request was answered"
    UNROUTABLE = (
        "unroutable",
        "no queue is bound for this event, so no worker can receive it",
    )
    TIMEOUT = (
        "timeout",
        "no worker replied within BRIDGE_REQUEST_TIMEOUT; one may have processed the request",
    )
    REFUSED = (
        "refused",
        "the bridge does not accept the event or its data, or the worker reported an error",
    )
    FLOODING = (
        "flooding",
        "the window has too many requests in flight, or does not read its answers",
    )
    NOT_AVAILABLE = (
        "not_available",
        "the broker cannot take the request now, or its connection was lost before the "
        "reply; a worker may have processed the request",
    )

    @property
    def is_error(self) -> bool:
        """Whether it is a code that a page can receive."""
        return self not in {
            RequestOutcome.ANSWERED,
            RequestOutcome.SENT,
            RequestOutcome.LEFT,
        }


REQUEST_ERRORS: Final = tuple(one for one in RequestOutcome if one.is_error)


class ReplyOutcome(StrEnum):
    """What became of a receipt for a `reply_to`: a label of `bridge_event_replies_total`."""

    SENT = "sent"
    UNROUTABLE = "unroutable"  # there is no such queue
    REFUSED = "refused"  # of bridge, no name, or direct ones are paused
    NOT_PERMITTED = "not_permitted"  # bridge may not write to the default exchange
    UNCONFIRMED = "unconfirmed"  # not in time, a full queue, or a loss


class ControlOutcome(StrEnum):
    """How a command ended: a label of `bridge_control_commands_total`."""

    DONE = "done"
    REFUSED = "refused"  # no such command, malformed, or over already
    FAILED = "failed"  # an unexpected error


class Outcome(StrEnum):
    """How a delivery was settled: a label of `bridge_deliveries_settled_total`."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    EPHEMERAL = "ephemeral"
    DEAD_LETTER = "dead_letter"
    RETRY = "retry"
    EXPIRED = "expired"
    STALE = "stale"


class KeyRefusal(StrEnum):
    """Why a key was refused: a label of `bridge_keys_refused_total`."""

    WRONG = "wrong"
    PAUSED = "paused"  # not compared: its address has presented too many wrong ones


class Stage(StrEnum):
    """A step in the life of a message, as `bridge trace` shows it."""

    PUBLISHED = "published"
    TAKEN = "taken"
    STORED = "stored"
    DUPLICATE = "duplicate"
    EMITTED = "emitted"
    WRITTEN = "written"
    DELIVERED = "delivered"
    WAITING = "waiting"
    EXPIRED = "expired"
    TRIMMED = "trimmed"
    REPLACED = "replaced"
    RETRIED = "retried"
    DEAD = "dead"
    REDRIVEN = "redriven"
    TRACKED = "tracked"
    REPORTED = "reported"


class PresenceChange(StrEnum):
    """A change in the presence of a user, as the user page of the console shows it."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    ONLINE = "user.online"
    OFFLINE = "user.offline"


class ReceiptOutcome(_ExplainedEnum):
    """What happened to a tracked message; the routing key is `message.` and the value."""

    DELIVERED = (
        "delivered",
        "the user has received it: the delivered mark is at it or after it",
    )
    EXPIRED = "expired", "its time to live ended before it was delivered"
    TRIMMED = (
        "trimmed",
        "it was deleted, because of the limit or its age, and not delivered",
    )
    REPLACED = (
        "replaced",
        "a newer message with its key replaced it before it was delivered",
    )
    DEAD = "dead", "it is a dead letter"
    UNDELIVERED = (
        "undelivered",
        "it was not delivered in the time that its producer gave it",
    )


class Fate(_ExplainedEnum):
    """The state of a message, as `bridge trace` sums it up."""

    DELIVERED = (
        "delivered",
        "the user has received it: the delivered mark is at it or after it",
    )
    WAITING = (
        "waiting",
        "it is in the inbox, and the verdict names the cause of the wait",
    )
    EXPIRED = "expired", "it expired before a window received it"
    TRIMMED = (
        "trimmed",
        "it was stored and later deleted, because of the limit or its age",
    )
    REPLACED = (
        "replaced",
        "a newer message with its key has replaced it; the verdict names its position",
    )
    DEAD = "dead", "it is a dead letter"
    EMITTED = (
        "emitted",
        "it is ephemeral: it was emitted to the windows that were open, and not stored",
    )
    RETRYING = (
        "retrying",
        "storing it failed; it waits in a retry queue for the next attempt",
    )
    ON_ITS_WAY = (
        "on_its_way",
        "the broker confirmed it and the bridge has not consumed it yet",
    )
    UNKNOWN = (
        "unknown",
        "neither the inbox, the journals nor the dead letters contain it",
    )


class ExitCode:
    """The exit statuses of the commands."""

    DONE: Final = 0
    FAILED: Final = 1
    USAGE: Final = 2
    UNREACHABLE: Final = 3
