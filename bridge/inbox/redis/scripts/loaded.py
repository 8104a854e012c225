"""The scripts that each new connection loads."""

from typing import Final

from bridge.inbox.redis.scripts.append import APPEND
from bridge.inbox.redis.scripts.presence import DROP_PRESENCE_EVENTS, NOTE_PRESENCE
from bridge.inbox.redis.scripts.queries import BROWSE, FIND, STATES, WAITING
from bridge.inbox.redis.scripts.reading import COUNT_EXPIRED, NEWEST, READ, RETAINED
from bridge.inbox.redis.scripts.receipts import POLL, PUT_EVENT
from bridge.inbox.redis.scripts.upkeep import (
    BEGIN,
    CLAIM,
    MARK,
    NOTE_TRIALS,
    REVOKE,
    SWEEP,
)

ALL_SCRIPTS: Final = (
    *(APPEND, SWEEP, CLAIM, READ, COUNT_EXPIRED, MARK, NOTE_TRIALS, BEGIN, NEWEST),
    *(BROWSE, FIND, STATES, WAITING, REVOKE, RETAINED, POLL, PUT_EVENT),
    *(NOTE_PRESENCE, DROP_PRESENCE_EVENTS),
)
