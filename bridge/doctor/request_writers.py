"""
Check that only bridge may write to the exchange of requests from pages.

Workers rely on the user in the headers of a request. Another account that may publish to the
exchange could write any user there.
"""

import re
from shlex import quote
from typing import Final

from bridge.amqp.management import ManagementApi, ManagementError
from bridge.core.broker_names import BrokerNames
from bridge.doctor.results import CheckResult, ok, skip, warn

_NEEDED: Final = "needs the management API and the login of an administrator"


async def check_request_writers(
    management: ManagementApi | None, names: BrokerNames, *, own_user: str, vhost: str
) -> CheckResult:
    """
    Name the accounts, besides bridge's own, that could forge requests.

    Args:
        management: ``None`` if no URL is set.
        names: Of the exchange.
        own_user: The account of bridge.
        vhost: Where its exchanges are.

    """
    subject = f"who may write to {names.requests}"
    show = f"rabbitmqctl list_permissions --vhost {quote(vhost)}   # shows the same"
    if management is None:
        return skip(subject, _NEEDED, fix=show)
    try:
        path = f"vhosts/{management.vhost_path}/permissions"
        value = (await management.get(path)).value
    except ManagementError as exc:
        return skip(subject, f"{_NEEDED}: {exc}", fix=show)
    writers = sorted(
        str(entry.get("user"))
        for entry in (value if isinstance(value, list) else [])
        if isinstance(entry, dict)
        and entry.get("user") != own_user
        and _matches(str(entry.get("write")), names.requests)
    )
    if not writers:
        return ok(subject, f"{own_user} alone, so workers can rely on x-bridge-user")
    text = f"also {', '.join(writers)}; such an account can send requests in the name of any user"
    producer = quote(f"^{re.escape(names.messages)}$")
    fix = (
        f"rabbitmqctl set_permissions --vhost {quote(vhost)} {quote(writers[0])} '^$' "
        f"{producer} '^$'   # a producer; for others see docs/security.md"
    )
    return warn(subject, text, fix=fix)


def _matches(pattern: str, name: str) -> bool:
    """Return whether RabbitMQ grants `name`; true if the pattern cannot be parsed here."""
    try:
        # RabbitMQ reads an empty pattern as `^$`.
        return bool(pattern) and re.search(pattern, name) is not None
    except re.error:  # Erlang's regular expressions have more syntax than Python's
        return True
