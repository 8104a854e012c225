"""Check one broker: connection, version, certificate, topology and permissions."""

import re
import shlex
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from shlex import quote
from time import time
from typing import Final

from yarl import URL

from bridge.amqp.connection import BrokerAddress, BrokerConnection, Purpose, connected
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.permissions import (
    MissingPermission,
    may_configure_anything,
    may_reply,
    missing_permissions,
)
from bridge.amqp.topology import ComparisonState, Exchange, Queue, Topology, compare
from bridge.core.broker_names import BrokerNames
from bridge.doctor.certificates import check_certificate
from bridge.doctor.permissions import (
    grant_command,
    least_permissions_command,
    new_user_command,
)
from bridge.doctor.results import CheckResult, fail, ok, skip, warn
from bridge.enums import ExitCode
from bridge.errors import BrokerUnavailableError
from bridge.settings.checks import is_loopback

# RabbitMQ caches certificate files: a renewed file is read after the cache is cleared.
_RENEW: Final = "renew it, and `rabbitmqctl eval 'ssl:clear_pem_cache().'`"
_VERSION: Final = re.compile(r"(\d+)\.(\d+)")
_OLDEST: Final = (3, 10)
_NEWEST_KNOWN: Final = (4, 3)
_DEFAULTS_OF_4: Final = (
    "delivery limit of 20 for other queues (bridge sets one for its own); messages of up to "
    "16 MiB; a delivery that is not acked within 30 min closes the channel"
)
# The oldest version to which each text applies; it applies until the next one.
_DEFAULTS: Final = (
    (
        (3, 10),
        "no default delivery limit (bridge sets one for its own queues); messages of up to "
        "128 MiB; a delivery that is not acked within 30 min closes the channel. "
        "Dead-lettering with confirms needs the feature flag stream_queue",
    ),
    ((4, 0), f"{_DEFAULTS_OF_4}. bridge was tested on 4.0.5"),
    ((4, 1), f"{_DEFAULTS_OF_4}. bridge was not tested on it"),
    (
        (4, 3),
        "declaring and binding need a majority of the nodes (Khepri); messages of up to "
        "16 MiB; a delivery not acked within 30 min returns to the queue. bridge was not "
        "tested on it",
    ),
)


@dataclass(frozen=True, slots=True)
class BrokerTarget:
    """One URL of the broker, with what the bridge needs there."""

    url: URL
    subject: str
    names: BrokerNames
    wanted: Topology
    timeout_s: float


async def check_broker(
    target: BrokerTarget, *, with_topology: bool
) -> AsyncIterator[CheckResult]:
    """
    Connect to one broker and check it.

    Args:
        target: The URL, and what the bridge needs there.
        with_topology: Whether to check topology and permissions too.

    """
    address = BrokerAddress(urls=(str(target.url),), timeout_s=target.timeout_s)
    try:
        async with connected(
            address, purpose=Purpose.CHECK, reader=FrameReader
        ) as connection:
            properties = connection.wire.server_properties
            yield check_version(
                target.subject,
                str(properties.get("product")),
                str(properties.get("version")),
            )
            yield _check_tls(target.url, connection.certificate_end_s)
            if with_topology:
                async for result in _check_topology(connection, target):
                    yield result
    except BrokerUnavailableError as exc:
        fix = _unreachable_fix(target.url, exc)
        yield fail(target.subject, exc.problem, fix=fix, exit_code=ExitCode.UNREACHABLE)


def check_version(subject: str, product: str, version: str) -> CheckResult:
    """Name the broker's defaults that matter to the bridge; `version` is like `3.10.8`."""
    shown = f"{product} {version}"
    match = _VERSION.match(version)
    if product != "RabbitMQ" or match is None:
        return warn(subject, f"{shown}: bridge supports RabbitMQ only")
    number = (int(match[1]), int(match[2]))
    if number < _OLDEST:
        text = f"{shown} is too old: quorum queues have no message TTL before 3.10"
        return fail(subject, text, fix="upgrade RabbitMQ to 3.10 or later")
    defaults = [text for since, text in _DEFAULTS if number >= since][-1]
    if number > _NEWEST_KNOWN:
        text = f"{shown} is newer than the newest known version (4.3): {defaults}"
        return warn(subject, text)
    return ok(subject, f"{shown}: {defaults}")


def check_permissions(
    lacks: Sequence[MissingPermission],
    names: BrokerNames,
    *,
    url: URL,
    may_do_anything: bool,
) -> CheckResult:
    """Name the rights the user lacks, with the command that grants exactly those."""
    user = url.user or "guest"
    subject = f"permissions of {user}"
    if lacks:
        by_right: dict[str, list[str]] = {}
        for lack in lacks:
            by_right.setdefault(lack.permission, []).append(lack.name)
        text = "; ".join(
            f"no {right} on {', '.join(by_right[right])}" for right in by_right
        )
        return fail(subject, text, fix=_grant_fix(names, url, user))
    if may_do_anything:
        text = (
            f"more than needed: configure, write or read outside of {names.namespace}.*; "
            "with the fix, receipts no longer go to `reply_to`, which needs the right to "
            "write to amq.default"
        )
        fix = least_permissions_command(names.namespace, url)
        return warn(subject, text, fix=fix)
    return ok(subject, f"configure, write and read on {names.namespace}.*")


def _grant_fix(names: BrokerNames, url: URL, user: str) -> str:
    if user == "guest":
        return new_user_command(names.namespace, url)
    command = grant_command(names.namespace, url, user=user)
    return f"{command}   # replaces its other permissions there"


def _unreachable_fix(url: URL, exc: BrokerUnavailableError) -> str:
    if "login refused" in exc.problem:
        return (
            "correct BRIDGE_AMQP_URL; on the broker: rabbitmqctl authenticate_user "
            f"{shlex.quote(url.user or 'guest')}   # asks for the password"
        )
    if "refused; is RabbitMQ running" not in exc.problem:
        return (
            "correct BRIDGE_AMQP_URL; on the broker: rabbitmq-diagnostics -q listeners"
        )
    if is_loopback(url.host or ""):
        return f"docker run -d -p {url.port or 5672}:5672 rabbitmq:4   # or: sudo systemctl start rabbitmq-server"
    return f"sudo systemctl start rabbitmq-server   # on {url.host}"


def _check_tls(url: URL, certificate_end_s: float | None) -> CheckResult:
    if certificate_end_s is not None:
        subject = "certificate of the broker"
        return check_certificate(subject, certificate_end_s, now_s=time(), fix=_RENEW)
    if url.scheme == "amqps":
        return skip("certificate of the broker", "its end date is not known")
    if is_loopback(url.host or ""):
        return ok("connection to the broker", "without TLS, on this machine")
    text = "without TLS: the password and every message cross the network in clear text"
    return warn("connection to the broker", text, fix="use amqps:// in BRIDGE_AMQP_URL")


async def _check_topology(
    connection: BrokerConnection[FrameReader], target: BrokerTarget
) -> AsyncIterator[CheckResult]:
    timeout_s, wanted = target.timeout_s, target.wanted
    compared = await compare(connection, wanted, timeout_s=timeout_s)
    for found in compared:
        if found.state in (ComparisonState.OK, ComparisonState.MISSING):
            text = found.text or "as bridge declares it"
            if found.messages and found.name == f"queue {target.names.dead}":
                plural = "" if found.messages == 1 else "s"
                text += (
                    f"; holds {found.messages} dead letter{plural}: `bridge dead list`"
                )
            yield ok(found.name, text)
        elif found.state is ComparisonState.DIFFERENT:
            fix = _delete_command(found.name, target.url)
            yield fail(found.name, found.text, fix=fix)
        else:
            yield skip(found.name, "access refused: see the permissions below")
    # `compare` answers in this order.
    declared: list[Exchange | Queue] = [*wanted.exchanges, *wanted.queues]
    undeclared = [
        entity
        for entity, found in zip(declared, compared, strict=True)
        if found.state in (ComparisonState.MISSING, ComparisonState.REFUSED)
    ]
    lacks = await missing_permissions(
        connection, wanted, undeclared=undeclared, timeout_s=timeout_s
    )
    may_do_anything = await may_configure_anything(connection, timeout_s=timeout_s)
    yield check_permissions(
        lacks, target.names, url=target.url, may_do_anything=may_do_anything
    )
    may = await may_reply(connection, timeout_s=timeout_s)
    events = target.names.events
    text = f"go to {events}, and to the `reply_to` of a message"
    if not may:
        text = (
            f"go to {events}, and not to the `reply_to` of a message: no write on "
            "amq.default (docs/security.md, least permissions)"
        )
    yield ok("receipts", text)


def _delete_command(title: str, url: URL) -> str:
    """Return the command that deletes an exchange or queue; `bridge run` declares it again."""
    kind, _, name = title.partition(" ")
    vhost = quote(url.path.removeprefix("/") or "/")
    if kind == "queue":
        # --if-empty: the broker refuses to delete a queue that holds messages.
        return f"rabbitmqctl delete_queue --vhost {vhost} --if-empty {quote(name)}"
    return f"rabbitmqadmin --vhost {vhost} delete exchange name={quote(name)}"
