"""What a version of RabbitMQ means for the bridge."""

import re
from typing import Final

from bridge.doctor.results import Finding, note, ok, wrong

_VERSION: Final = re.compile(r"(\d+)\.(\d+)")
_OLDEST: Final = (3, 10)
_FOUR: Final = (
    "a delivery limit of 20 unless the queue sets one, which ours do; a message may "
    "have 16 MiB; an ack that takes 30 min closes the channel"
)
# From here on; each until the next. The topology is made so that none of it does harm.
_MEANINGS: Final = (
    (
        (3, 10),
        "no delivery limit unless the queue sets one, which ours do; a message may have "
        "128 MiB; an ack that takes 30 min closes the channel. Dead lettering with confirms "
        "needs the feature flag stream_queue",
    ),
    ((4, 0), f"{_FOUR}. bridge was run on 4.0.5"),
    ((4, 1), f"{_FOUR}. bridge was not run on it"),
    (
        (4, 3),
        "a majority of the nodes is needed to declare and bind (Khepri); a message may "
        "have 16 MiB; a delivery not acked in 30 min goes back to the queue. bridge was not "
        "run on it",
    ),
)
_NEWEST_KNOWN: Final = (4, 3)


def version_finding(subject: str, product: str, version: str) -> Finding:
    """
    Say what this broker means for the bridge.

    Args:
        subject: Which broker.
        product: As it calls itself.
        version: As it tells it, for example `3.10.8`.

    """
    shown = f"{product} {version}"
    match = _VERSION.match(version)
    if product != "RabbitMQ" or match is None:
        text = f"{shown}: the bridge is made for RabbitMQ, and knows nothing of it"
        return note(subject, text)
    number = (int(match[1]), int(match[2]))
    if number < _OLDEST:
        text = f"{shown} is too old: quorum queues have no message TTL before 3.10"
        return wrong(subject, text, mend="upgrade RabbitMQ to 3.10 or later")
    meaning = [text for since, text in _MEANINGS if number >= since][-1]
    if number > _NEWEST_KNOWN:
        text = f"{shown} is newer than what the bridge was checked against (4.3): {meaning}"
        return note(subject, text)
    return ok(subject, f"{shown}: {meaning}")
