"""
What crosses the borders of the bridge, as models: the source of everything in `schemas/`.

What the outside sends is strict where a slip would be swallowed otherwise (the body of
`POST /api/publish`), and open where others may add things of their own: a token's claims,
a message's properties, what a client library puts into `auth`. What the bridge sends may
grow; a reader ignores what it does not know. So only the first kind forbids extra fields.

Only `PublishRequest` and `Problem` are used while the bridge runs, once a request. The data of
a message is any JSON value: no model looks into it.
"""

from bridge.core.contracts.base import EVENT_MAX_BYTES, TTL_MAX_S
from bridge.core.contracts.messages import (
    DeadLetterHeaders,
    MessageProperties,
    Problem,
    PublishAccepted,
    PublishedMessage,
    PublishRequest,
)
from bridge.core.contracts.publish_request import (
    first_problem,
    parse_publish_request,
    problem_status,
)
from bridge.core.contracts.windows import (
    ClosingNotice,
    ConnectAuth,
    ConnectErrorData,
    EventReply,
    Expiring,
    Sync,
    TokenClaims,
)

__all__ = [
    "EVENT_MAX_BYTES",
    "TTL_MAX_S",
    "ClosingNotice",
    "ConnectAuth",
    "ConnectErrorData",
    "DeadLetterHeaders",
    "EventReply",
    "Expiring",
    "MessageProperties",
    "Problem",
    "PublishAccepted",
    "PublishRequest",
    "PublishedMessage",
    "Sync",
    "TokenClaims",
    "first_problem",
    "parse_publish_request",
    "problem_status",
]
