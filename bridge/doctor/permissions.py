"""Commands that give bridge a RabbitMQ user with the least permissions it needs."""

import re
from shlex import quote
from typing import Final

from yarl import URL

_OWN_USER: Final = "bridge"


def vhost_of(url: URL) -> str:
    """Return the virtual host in the URL of a broker."""
    return url.path.removeprefix("/") or "/"


def grant_command(namespace: str, url: URL, *, user: str) -> str:
    """Return the command that gives `user` the least permissions, and no others."""
    vhost = vhost_of(url)
    pattern = quote(f"^{re.escape(namespace)}\\.")
    return (
        f"rabbitmqctl set_permissions --vhost {quote(vhost)} {quote(user)} "
        f"{pattern} {pattern} {pattern}"
    )


def new_user_command(namespace: str, url: URL) -> str:
    """Return the command that makes a user for bridge alone."""
    grant = grant_command(namespace, url, user=_OWN_USER)
    return (
        f"rabbitmqctl add_user {_OWN_USER} && {grant}   # then log in as {_OWN_USER} in "
        "BRIDGE_AMQP_URL"
    )


def least_permissions_command(namespace: str, url: URL) -> str:
    """
    Return the command after which bridge has the least permissions it needs.

    Other programs may use an account such as `guest`, and would be locked out if it
    lost permissions: only an account of bridge is changed.
    """
    if url.user == _OWN_USER:
        return grant_command(namespace, url, user=_OWN_USER)
    return new_user_command(namespace, url)
