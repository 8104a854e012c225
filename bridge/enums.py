"""
Words that the whole house shares, and every closed list that the outside can see.

A name that a worker, a page or an operator can meet is declared here once: event
names, header names, reasons, codes. README's tables are compared with these lists
by a test.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

DEFAULT_NAMESPACE: Final = "bridge"

# --- events, as a page sees them --------------------------------------------------

EVENT_DEFAULT: Final = "message"
EVENT_SYNC: Final = "bridge:sync"
EVENT_EXPIRING: Final = "bridge:expiring"
EVENT_CLOSING: Final = "bridge:closing"

# What a page may emit to the bridge.
EVENT_ACK: Final = "ack"
EVENT_JOIN: Final = "join"
EVENT_REFRESH: Final = "bridge:refresh"

RESERVED_PREFIX: Final = "bridge:"
RESERVED_EVENTS: Final = frozenset(
    {
        # The stock client raises when a page emits these, and hands them to
        # listeners as its own life-cycle events.
        "connect",
        "connect_error",
        "disconnect",
        "disconnecting",
        "newListener",
        "removeListener",
        # The bridge's own, from page to bridge.
        EVENT_ACK,
        EVENT_JOIN,
    }
)
EVENT_MAX_CHARACTERS: Final = 128

# AMQP 0-9-1 section 4.2.5.3: a short string holds at most 255 bytes, and the
# routing key is one.
SHARDS_MAX: Final = 64
MARK_EVENT: Final = "bridge:mark"  # between bridges; see broker/shards.py
USER_MAX_BYTES: Final = 255


# --- headers that the bridge writes to AMQP messages --------------------------------

HEADER_PREFIX: Final = "x-bridge-"


class Header(StrEnum):
    """A header of a message that the bridge published again."""

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
    LETTER = "x-bridge-letter"
    REDRIVES = "x-bridge-redrives"
    REDRIVEN_ID = "x-bridge-redriven-id"


# Of others: RabbitMQ's message interceptor writes the one, OpenTelemetry's libraries the other.
HEADER_PUBLISHED_MS: Final = "timestamp_in_ms"
HEADER_TRACE_PARENT: Final = "traceparent"


# --- closed lists ---------------------------------------------------------------------


class DeadLetterReason(StrEnum):
    """Why a delivery was set aside in the dead letter queue."""

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
        "the data is not what the event's schema in BRIDGE_SCHEMAS allows, or the event "
        "has none there and BRIDGE_SCHEMAS_UNKNOWN=dead"
    ),
    DeadLetterReason.ATTEMPTS_EXHAUSTED: (
        "storing the message failed in a way the bridge does not know, and went on "
        "failing through all of BRIDGE_RETRY_DELAYS"
    ),
    DeadLetterReason.CRASHED: (
        "bridge died more than once while it handled this message, and nothing else"
    ),
}


class LetterReason(StrEnum):
    """Why a letter is in the dead letter queue: the bridge's reasons, and the broker's."""

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
        if self in _BROKERS_REASONS:
            return _BROKERS_REASONS[self]
        return DeadLetterReason(self.value).explanation


_BROKERS_REASONS: Final = {
    LetterReason.EXPIRED: (
        "its time ran out while it waited in the queue, and RabbitMQ set it aside"
    ),
    LetterReason.OTHER: (
        "neither the bridge nor an expiry put it here; its headers may tell who did"
    ),
}


class Refusal(StrEnum):
    """Why a window was not let in: `err.data.code` of the page's `connect_error`."""

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
        """Whether the same page may succeed later without doing anything else."""
        return self in _TEMPORARY_REFUSALS

    @property
    def explanation(self) -> str:
        """What the author of the page should know."""
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
    Refusal.KEYS_UNAVAILABLE: "the keys to check the token with cannot be had now",
    Refusal.ORIGIN_NOT_ALLOWED: "pages of this origin may not connect: see BRIDGE_ALLOWED_ORIGINS",
    Refusal.TOO_MANY_WINDOWS: "the user or the address has too many windows open",
    Refusal.BAD_REQUEST: "auth holds something that the bridge cannot read",
    Refusal.NOT_AVAILABLE: "the inbox store cannot be reached now",
    Refusal.DRAINING: "this bridge is going down: connect again",
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
        """Whether the stock client will and should connect again by itself."""
        return self in _CLOSINGS_THAT_RECONNECT

    @property
    def explanation(self) -> str:
        """What the author of the page should know."""
        return _CLOSING_EXPLANATIONS[self]


_CLOSINGS_THAT_RECONNECT: Final = frozenset(
    {Closing.SLOW, Closing.DRAINING, Closing.UNAVAILABLE}
)
_CLOSING_EXPLANATIONS: Final = {
    Closing.EXPIRED: "the token's life is over: connect again with a new one",
    Closing.SLOW: "the window read nothing for too long; it gets what it missed when it is back",
    Closing.DRAINING: "this bridge is going down; the window finds its place in the next one",
    Closing.KICKED: "an operator closed the user's windows",
    Closing.FLOODING: "the window sent more events than it may",
    Closing.UNAVAILABLE: "the inbox could not be read; the window tries again",
}


class SyncReason(StrEnum):
    """Why something is missing: `reason` of the event `bridge:sync`."""

    EXPIRED = "expired"
    LIMIT = "limit"
    RESET = "reset"

    @property
    def explanation(self) -> str:
        """What the author of the page should know."""
        return _SYNC_EXPLANATIONS[self]


_SYNC_EXPLANATIONS: Final = {
    SyncReason.EXPIRED: "messages were not delivered before their time was over",
    SyncReason.LIMIT: "the inbox holds no more than BRIDGE_INBOX_MAX_MESSAGES for a user",
    SyncReason.RESET: "the position is of another store, or from its future",
}


class EventError(StrEnum):
    """What a page's own event is answered with, as `{ok: false, code}`."""

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
    """How a delivery was settled, or what became of it: a metric's label."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    DEAD_LETTER = "dead_letter"
    RETRY = "retry"
    EXPIRED = "expired"
    STALE = "stale"


class Stage(StrEnum):
    """A step in the story of a message, as `bridge trace` tells it."""

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
    """What became of a message, in one word."""

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
    Fate.DELIVERED: "the user has had it: the delivered mark is at it or behind it",
    Fate.WAITING: "it is in the inbox, and the verdict says what it waits for",
    Fate.EXPIRED: "its time was over before a window had it",
    Fate.TRIMMED: "it was stored and is not kept any more: over the limit or over its age",
    Fate.DEAD: "it was set aside as a dead letter",
    Fate.RETRYING: "storing it failed; it waits in a retry queue for the next attempt",
    Fate.ON_ITS_WAY: "the broker has confirmed it and the bridge has not taken it yet",
    Fate.UNKNOWN: "no trace of it is left where one could look",
}


class ExitCode:
    """What a command's exit status means."""

    DONE: Final = 0
    FAILED: Final = 1
    USAGE: Final = 2
    UNREACHABLE: Final = 3


# --- names on the broker ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BrokerNames:
    """The exchanges and queues of one namespace (design: contracts, worker -> exchange)."""

    namespace: str = DEFAULT_NAMESPACE

    @property
    def messages(self) -> str:
        """The topic exchange that workers publish to."""
        return f"{self.namespace}.messages"

    @property
    def inbound(self) -> str:
        """The exchange in front of the inbound queues; retries come back through it."""
        return f"{self.namespace}.inbound"

    def inbound_queue(self, shard: int = 0, *, shards: int = 1) -> str:
        """The queue of one shard out of so many; one active bridge consumes it.

        The number of shards is part of the name: when it changes, the queues of before
        are emptied first, so the two must not mix.
        """
        of = f"of{shards}" if shards > 1 else ""
        return f"{self.namespace}.inbound.{shard}{of}"

    def inbound_queues(self, shards: int = 1) -> tuple[str, ...]:
        """The queues of all shards."""
        return tuple(self.inbound_queue(n, shards=shards) for n in range(shards))

    def shards_entry(self, shards: int) -> str:
        """The exchange that spreads users over so many shards."""
        return f"{self.namespace}.inbound.of{shards}"

    @property
    def bridges(self) -> str:
        """A queue that stays empty: its consumers are the bridges that share shards."""
        return f"{self.namespace}.bridges"

    def token(self, kind: str) -> str:
        """The queue of a token; see broker/alone.py, which has the kinds."""
        return f"{self.namespace}.{kind}"

    def retry_queue(self, delay_ms: int) -> str:
        """The queue in which a message waits `delay_ms` before it comes back.

        The delay is part of the name, so that a changed BRIDGE_RETRY_DELAYS makes
        new queues instead of a clash of arguments; the old ones run empty by
        themselves.
        """
        return f"{self.namespace}.retry.{delay_ms}"

    @property
    def dead(self) -> str:
        """The exchange and the queue of dead letters."""
        return f"{self.namespace}.dead"
