"""
Check which accounts may write to the exchanges whose messages are trusted.

Workers rely on the user in the headers of a request. A command can end the access of every
user.
"""

import re
from collections.abc import AsyncIterator
from shlex import quote
from typing import Final

from bridge.amqp.management import ManagementApi, ManagementError
from bridge.core.broker_names import BrokerNames
from bridge.doctor.results import CheckResult, ok, skip, warn

_NEEDED: Final = "needs the management API and the login of an administrator"


async def check_exchange_writers(
    management: ManagementApi | None,
    names: BrokerNames,
    *,
    own_user: str,
    vhost: str,
    has_requests: bool,
) -> AsyncIterator[CheckResult]:
    """
    Name the accounts, besides bridge's own, that could send commands or forge events.

    Args:
        management: ``None`` if no URL is set.
        names: Of the exchanges.
        own_user: The account of bridge.
        vhost: Where its exchanges are.
        has_requests: Whether pages may send requests.

    """
    of_control = f"who may write to {names.control}"
    forgeries = [
        (names.events, "publish receipts that are not true", "rely on receipts"),
        (
            names.requests,
            "send requests in the name of any user",
            "rely on x-bridge-user",
        ),
    ][: 2 if has_requests else 1]
    patterns = await _write_patterns(management)
    if isinstance(patterns, str):
        show = f"rabbitmqctl list_permissions --vhost {quote(vhost)}   # shows the same"
        for exchange in (names.control, *(each[0] for each in forgeries)):
            yield skip(f"who may write to {exchange}", patterns, fix=show)
        return
    patterns.pop(own_user, None)

    def writers(exchange: str) -> list[str]:
        return sorted(u for u, write in patterns.items() if _matches(write, exchange))

    def fix(user: str) -> str:
        producer = quote(f"^{re.escape(names.messages)}$")
        return (
            f"rabbitmqctl set_permissions --vhost {quote(vhost)} {quote(user)} '^$' "
            f"{producer} '^$'   # a producer; for others see docs/security.md"
        )

    commanders = writers(names.control)
    # An account for commands alone is intended: docs/control.md creates one.
    broad = [user for user in writers(names.messages) if user in commanders]
    if broad:
        text = (
            f"also {', '.join(broad)}; such an account can kick and revoke every user"
        )
        yield warn(of_control, text, fix=fix(broad[0]))
    else:
        yield ok(of_control, f"{' and '.join([own_user, *commanders])} alone")
    for exchange, harm, use in forgeries:
        subject = f"who may write to {exchange}"
        forgers = writers(exchange)
        if forgers:
            text = f"also {', '.join(forgers)}; such an account can {harm}"
            yield warn(subject, text, fix=fix(forgers[0]))
        else:
            yield ok(subject, f"{own_user} alone, so workers can {use}")


async def _write_patterns(management: ManagementApi | None) -> dict[str, str] | str:
    """Return the write permission of each account, or why it cannot be read."""
    if management is None:
        return _NEEDED
    try:
        answer = await management.get(f"vhosts/{management.vhost_path}/permissions")
    except ManagementError as exc:
        return f"{_NEEDED}: {exc}"
    entries = answer.value if isinstance(answer.value, list) else []
    return {
        str(entry.get("user")): str(entry.get("write"))
        for entry in entries
        if isinstance(entry, dict)
    }


def _matches(pattern: str, name: str) -> bool:
    """Return whether RabbitMQ grants `name`; true if the pattern cannot be parsed here."""
    try:
        # RabbitMQ reads an empty pattern as `^$`.
        return bool(pattern) and re.search(pattern, name) is not None
    except re.error:  # Erlang's regular expressions have more syntax than Python's
        return True
