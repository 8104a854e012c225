"""`bridge queues`: the queues of a running bridge on the broker."""

from bridge.cli.operator_client import OperatorOptions, ask_once, print_json
from bridge.cli.options import with_option_groups
from bridge.cli.tables import print_note, print_table
from bridge.core.contracts.operator.operation import PAGE_MAX, Page
from bridge.core.contracts.operator.queues import QueueFacts


@with_option_groups
def queues(operator: OperatorOptions) -> None:
    """
    Show the queues of a running bridge: depth, unacked, consumers, age, rates.

    Rates and the unacked deliveries of others come from RabbitMQ's management API, if
    BRIDGE_MANAGEMENT_URL is set. Exit status: 0 shown, 3 the bridge or the broker
    cannot be reached.

    Examples:

        bridge queues

        bridge queues --json | jq '.items[] | select(.role == "dead").depth'

    """
    page = ask_once(
        operator,
        "/api/queues",
        Page[QueueFacts],
        query={"limit": PAGE_MAX},
    )
    if operator.json:
        print_json(page)
        return
    numbers = ("depth", "unacked", "consumers", "oldest", "in/s", "out/s")
    print_table(
        ("queue", "role", *numbers),
        [_row(queue) for queue in page.items],
        right=frozenset(numbers),
    )
    if not any(queue.rates or queue.problem for queue in page.items):
        print_note(
            "in/s and out/s: set BRIDGE_MANAGEMENT_URL of the bridge to see them"
        )
    for queue in page.items:
        if queue.problem:
            print_note(f"{queue.name}: {queue.problem}")


def _row(queue: QueueFacts) -> list[str]:
    rates = queue.rates
    return [
        queue.name,
        queue.role,
        _number(queue.depth),
        _number(queue.unacked),
        _number(queue.consumers),
        _oldest(queue),
        _number(rates.in_per_s if rates else None),
        _number(rates.out_per_s if rates else None),
    ]


def _oldest(queue: QueueFacts) -> str:
    if queue.oldest_s is not None:
        return f"{queue.oldest_s:,.1f} s"
    most_s = queue.oldest_at_most_s
    return "-" if most_s is None else f"≤ {most_s:,.1f} s"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
