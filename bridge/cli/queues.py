"""`bridge queues`: what waits on the broker, and who consumes it."""

from rich.console import Console
from rich.table import Table

from bridge.cli.operator_client import (
    ask_once,
    operator_address,
    print_json,
)
from bridge.cli.options import (
    AsJson,
    ConfigFile,
    OperatorToken,
    OperatorUrl,
)
from bridge.core.contracts.operator.operation import PAGE_MAX, Page
from bridge.core.contracts.operator.queues import QueueFacts


def queues(
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Show the queues of a running bridge: depth, unacked, consumers, age, rates.

    Rates and what others hold unacked come from RabbitMQ's management API, where
    BRIDGE_MANAGEMENT_URL names it. Exit status: 0 shown, 3 the bridge or the broker
    cannot be reached.

    Examples:

        bridge queues

        bridge queues --json | jq '.items[] | select(.role == "dead").depth'

    """
    page = ask_once(
        operator_address(url, token, config_file),
        "/api/queues",
        Page[QueueFacts],
        query={"limit": PAGE_MAX},
    )
    if json:
        print_json(page)
        return
    table = Table(box=None, header_style="bold")
    table.add_column("queue", no_wrap=True)
    table.add_column("role")
    for name in ("depth", "unacked", "consumers", "oldest", "in/s", "out/s"):
        table.add_column(name, justify="right")
    for queue in page.items:
        rates = queue.rates
        table.add_row(
            queue.name,
            queue.role,
            _number(queue.depth),
            _number(queue.unacked),
            _number(queue.consumers),
            _oldest(queue),
            _number(rates.in_per_s if rates else None),
            _number(rates.out_per_s if rates else None),
        )
    Console(highlight=False).print(table)
    talk = Console(stderr=True, highlight=False)
    for queue in page.items:
        if queue.problem:
            talk.print(f"{queue.name}: {queue.problem}", markup=False, soft_wrap=True)


def _oldest(queue: QueueFacts) -> str:
    if queue.oldest_s is not None:
        return f"{queue.oldest_s:,.1f} s"
    most_s = queue.oldest_at_most_s
    return "-" if most_s is None else f"≤ {most_s:,.1f} s"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
