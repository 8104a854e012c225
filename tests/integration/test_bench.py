"""A short run of `make bench` with every server."""

from pathlib import Path

from tests.bench.plots import draw
from tests.bench.report import report_lines, write_part
from tests.bench.run import BenchPlan, BenchWorld, run
from tests.bench.servers import Processors
from tests.bench.workloads import Scale
from tests.local_node import LocalNode

TINY = Scale(
    backlog=300,
    slow_backlog=300,
    seconds=0.2,
    rate=500,
    windows=5,
    fanout=20,
    fanout_messages=5,
    requests=30,
    request_rate=300,
    warm_up=10,
    afterwards_s=0,
)


async def test_the_bench_compares_all_servers_on_the_same_workload(
    broker: LocalNode, tmp_path: Path
) -> None:
    """A benchmark that is not tested is broken when it is needed."""
    world = BenchWorld(broker.url, tmp_path, Processors("any", "any"))
    servers = ("memory", "sqlite", "node", "node-each", "python", "bare")
    every = BenchPlan(("saturated",), servers, 1, TINY)
    some = BenchPlan(("steady", "fanout"), ("memory",), 1, TINY)

    results = await run(every, world, report=print)
    others = await run(some, world, report=print)

    assert {r.target.text for r in results.ratios()} == {"200 windows, saturated"}
    assert {"floor", "memory"} == others.rounds[0]["fanout"].keys()
    assert others.rounds[0]["steady"]["memory"].keys() >= {"us", "p50_ms", "p99_ms"}
    assert all(
        figure > 0
        for each in (results, others)
        for work in each.rounds[0].values()
        for figures in work.values()
        for figure in figures.values()
    )


async def test_the_bench_compares_requests_of_pages_with_those_over_node(
    broker: LocalNode, tmp_path: Path
) -> None:
    """Both send each request to the same worker and wait for its reply."""
    world = BenchWorld(broker.url, tmp_path, Processors("any", "any"))
    plan = BenchPlan(("requests",), ("memory", "sqlite", "node"), 1, TINY)

    results = await run(plan, world, report=print)

    found = results.rounds[0]["requests"]
    assert found.keys() == {"memory", "node"}
    assert all(figure > 0 for figures in found.values() for figure in figures.values())


async def test_the_bench_compares_messages_with_receipts_with_those_without(
    broker: LocalNode, tmp_path: Path
) -> None:
    """The work ends when a worker has the receipt of each message."""
    world = BenchWorld(broker.url, tmp_path, Processors("any", "any"))
    servers = ("sqlite", "node", "node-each", "bare")
    plan = BenchPlan(("saturated", "receipts"), servers, 1, TINY)

    results = await run(plan, world, report=print)

    assert results.rounds[0]["receipts"].keys() == {"sqlite", "node", "bare"}
    assert "saturated, with receipts / without" in {
        ratio.target.text for ratio in results.ratios()
    }


async def test_a_report_replaces_the_text_between_its_markers(
    broker: LocalNode, tmp_path: Path
) -> None:
    """The rest of the page is written by people and must not change."""
    world = BenchWorld(broker.url, tmp_path, Processors("any", "any"))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- run: begin -->\nold\n<!-- run: end -->\nafter\n")

    results = await run(BenchPlan(("fanout",), (), 1, TINY), world, report=print)
    write_part(page, "run", report_lines(results))
    draw(results, page.with_suffix(".png"))

    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")  # noqa: PT018 - one page
    assert "the floor" in text
    assert "old" not in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
