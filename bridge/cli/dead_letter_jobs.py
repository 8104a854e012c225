"""Run redrives and discards from a terminal: start the job, follow it, cancel it on Ctrl-C."""

import asyncio
from collections.abc import Sequence
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bridge.cli.operator_client import (
    OperatorClient,
    OperatorOptions,
    operator_client,
    print_json,
)
from bridge.cli.tables import plural
from bridge.core.contracts.operator.dead_letters import (
    DeadLetterSelection,
    Discard,
    JobStarted,
    Redrive,
    Would,
)
from bridge.core.contracts.operator.jobs import JobFacts, JobState
from bridge.enums import ExitCode

_REDRIVE: Final = "/api/dead/redrive"
_DISCARD: Final = "/api/dead/discard"
_FIRST_POLL_S: Final = 0.05
_POLL_MAX_S: Final = 1.0


def redrive_letters(operator: OperatorOptions, request: Redrive) -> None:
    """
    Redrive the selected dead letters, or count them if `request` is a dry run.

    Raises:
        typer.Exit: With status 1 if any of them was not redriven.

    """
    if request.dry_run:
        would = asyncio.run(_count(operator, _REDRIVE, request))
        _print_would(operator, would, "redriven")
        return
    _exit(asyncio.run(_run(operator, _REDRIVE, request, "redriven")))


def discard_letters(
    operator: OperatorOptions, request: Discard, *, is_confirmed: bool
) -> None:
    """
    Discard the selected dead letters, or count them if `request` is a dry run.

    Raises:
        typer.Abort: If the person at the terminal does not confirm the number.
        typer.Exit: With status 1 if any of them was not discarded.

    """
    would = asyncio.run(_count(operator, _DISCARD, request))
    if request.dry_run:
        _print_would(operator, would, "discarded")
        return
    if not is_confirmed and would.would:
        typer.confirm(
            f"Discard {plural(would.would, 'dead letter')} permanently?",
            abort=True,
            err=True,
        )
    request = request.model_copy(update={"confirm": would.would})
    _exit(asyncio.run(_run(operator, _DISCARD, request, "discarded")))


async def _count(
    operator: OperatorOptions, path: str, request: DeadLetterSelection
) -> Would:
    async with operator_client(operator) as client:
        dry_run = request.model_copy(update={"dry_run": True})
        return await client.ask("POST", path, Would, body=dry_run)


async def _run(
    operator: OperatorOptions,
    path: str,
    request: DeadLetterSelection,
    done: str,
) -> int:
    """Start the job, follow it to its end, and return the exit status."""
    async with operator_client(operator) as client:
        started = await client.ask("POST", path, JobStarted, body=request)
        job = await _follow(client, started.job, done)
        if operator.json:
            print_json(job)
        else:
            typer.echo(_sentence(job, done))
        is_done = job.state is JobState.DONE and not job.failed
        code = ExitCode.DONE if is_done else ExitCode.FAILED
        return max(code, _report_missing(request.ids, started.job.total))


def _report_missing(ids: Sequence[str] | None, found: int) -> int:
    """Report named dead letters that are not in the queue, and return the exit status."""
    missing = len(set(ids or ())) - found
    if missing <= 0:
        return ExitCode.DONE
    which = "id is" if missing == 1 else "ids are"
    typer.echo(
        f"{missing:,} {which} not in the queue; a message that becomes a dead letter again gets a "
        "new id",
        err=True,
    )
    return ExitCode.FAILED


def _print_would(operator: OperatorOptions, would: Would, done: str) -> None:
    if operator.json:
        print_json(would)
    else:
        typer.echo(f"{plural(would.would, 'dead letter')} would be {done}")


async def _follow(client: OperatorClient, job: JobFacts, done: str) -> JobFacts:
    """Show the job's progress until it ends. Ctrl-C cancels the job and waits for its end."""
    try:
        return await _watch(client, job, done)
    except asyncio.CancelledError:
        # asyncio.run turns Ctrl-C into a cancellation. The job lives in the bridge, so it
        # has to be canceled there, and its result is still to be reported.
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return await client.ask("DELETE", f"/api/jobs/{job.id}", JobFacts)


async def _watch(client: OperatorClient, job: JobFacts, done: str) -> JobFacts:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(done), BarColumn(), MofNCompleteColumn())
    # Without a terminal, the bar would leave an empty line.
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task(done, total=job.total)
        pause_s = _FIRST_POLL_S
        while job.state is JobState.RUNNING:
            await asyncio.sleep(pause_s)
            pause_s = min(_POLL_MAX_S, pause_s * 2)
            job = await client.ask("GET", f"/api/jobs/{job.id}", JobFacts)
            progress.update(bar, completed=job.done + job.failed)
    return job


def _sentence(job: JobFacts, done: str) -> str:
    text = f"{job.done:,} of {plural(job.total, 'dead letter')} {done}"
    if job.failed:
        verb = "remains" if job.failed == 1 else "remain"
        text += f", {job.failed:,} failed and {verb} in the queue"
    match job.state:
        case JobState.CANCELLED:
            text += "; cancelled, the rest stays in order"
        case JobState.FAILED:
            text += "; it ended early, the rest stays in order"
        case JobState.RUNNING:
            text += "; it is being cancelled"
        case JobState.DONE:
            pass
    return f"{text}: {job.error}" if job.error else text


def _exit(code: int) -> None:
    if code != ExitCode.DONE:
        raise typer.Exit(code)
