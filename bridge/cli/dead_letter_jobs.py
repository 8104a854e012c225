"""Redrive and discard from a terminal: ask, start the job, follow it, cancel it on Ctrl-C."""

import asyncio
from collections.abc import Sequence
from typing import Final, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bridge.cli.operator_client import (
    OperatorAddress,
    OperatorClient,
    operator_client,
    print_json,
)
from bridge.core.contracts.operator.dead_letters import (
    Discard,
    Filter,
    JobStarted,
    Redrive,
    Selection,
    Would,
)
from bridge.core.contracts.operator.jobs import JobFacts, JobState
from bridge.enums import ExitCode
from bridge.errors import ConfigError

SelectionT = TypeVar("SelectionT", bound=Selection)

_FIRST_LOOK_S: Final = 0.05
_LOOK_EACH_S: Final = 1.0


def redrive_letters(
    address: OperatorAddress,
    *,
    ids: Sequence[str] | None,
    wanted: Filter | None,
    rate_per_s: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """
    Redrive what is selected, and exit with 1 if not all of it could be.

    Args:
        address: Of the bridge.
        ids: These; or
        wanted: those that fit. Neither: all.
        rate_per_s: No faster.
        dry_run: Only count.
        as_json: Print the answer as JSON.

    """
    fields = {**_selection(ids, wanted), "rate_per_s": rate_per_s}

    async def work() -> int:
        async with operator_client(address) as client:
            if dry_run:
                body = _checked(Redrive, {**fields, "dry_run": True})
                would = await client.post("/api/dead/redrive", Would, body=body)
                return _tell_would(would, "redriven", as_json=as_json)
            body = _checked(Redrive, fields)
            started = await client.post("/api/dead/redrive", JobStarted, body=body)
            code = await _follow(client, started.job, "redriven", as_json=as_json)
            return max(code, _tell_gone(ids, started.job.total))

    _exit(asyncio.run(work()))


def discard_letters(
    address: OperatorAddress,
    *,
    ids: Sequence[str] | None,
    wanted: Filter | None,
    dry_run: bool,
    is_confirmed: bool,
    as_json: bool,
) -> None:
    """Discard what is selected once somebody said yes. Arguments as `redrive_letters`."""
    fields = _selection(ids, wanted)

    async def count() -> Would:
        async with operator_client(address) as client:
            body = _checked(Discard, {**fields, "dry_run": True})
            return await client.post("/api/dead/discard", Would, body=body)

    async def work(confirm: int) -> int:
        async with operator_client(address) as client:
            body = _checked(Discard, {**fields, "confirm": confirm})
            started = await client.post("/api/dead/discard", JobStarted, body=body)
            code = await _follow(client, started.job, "discarded", as_json=as_json)
            return max(code, _tell_gone(ids, started.job.total))

    would = asyncio.run(count())
    if dry_run:
        _exit(_tell_would(would, "discarded", as_json=as_json))
        return
    if not is_confirmed and would.would:
        typer.confirm(
            f"Discard {would.would:,} dead letters for good?", abort=True, err=True
        )
    _exit(asyncio.run(work(would.would)))


def _selection(ids: Sequence[str] | None, wanted: Filter | None) -> dict[str, object]:
    if ids:
        return {"ids": list(ids)}
    if wanted is not None:
        return {"filter": wanted.model_dump(exclude_unset=True)}
    return {"all": True}


def _checked(model: type[SelectionT], fields: dict[str, object]) -> SelectionT:
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        problems = [
            f"{error['input']!r} is no id; bridge dead list shows them"
            if error["loc"][:1] == ("ids",) and len(error["loc"]) > 1
            else f"{error['loc'][0] if error['loc'] else ''}: {error['msg']}"
            for error in exc.errors(include_url=False, include_context=False)
        ]
        raise ConfigError(problems) from exc


def _tell_gone(ids: Sequence[str] | None, found: int) -> int:
    """Say that letters which were named are not there, and what that is for the status."""
    gone = len(set(ids or ())) - found
    if gone <= 0:
        return ExitCode.DONE
    which = "id is" if gone == 1 else "ids are"
    told = f"{gone:,} {which} not there; a letter that comes back has another"
    typer.echo(told, err=True)
    return ExitCode.FAILED


def _tell_would(would: Would, done: str, *, as_json: bool) -> int:
    if as_json:
        print_json(would)
    else:
        typer.echo(f"{would.would:,} dead letters would be {done}")
    return ExitCode.DONE


async def _follow(
    client: OperatorClient, job: JobFacts, done: str, *, as_json: bool
) -> int:
    """Show how far the job is until it has ended; Ctrl-C cancels it and waits for that."""
    try:
        job = await _watch(client, job, done)
    except asyncio.CancelledError:
        # asyncio.run turns Ctrl-C into this; what was done must still be told.
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        job = await client.delete(f"/api/jobs/{job.id}", JobFacts)
    if as_json:
        print_json(job)
    else:
        typer.echo(_sentence(job, done))
    if job.state is JobState.DONE and not job.failed:
        return ExitCode.DONE
    return ExitCode.FAILED


async def _watch(client: OperatorClient, job: JobFacts, done: str) -> JobFacts:
    talk = Console(stderr=True, highlight=False)
    columns = (TextColumn(done), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=talk, transient=True) as progress:
        bar = progress.add_task(done, total=job.total)
        pause_s = _FIRST_LOOK_S
        while job.state is JobState.RUNNING:
            await asyncio.sleep(pause_s)
            pause_s = min(_LOOK_EACH_S, pause_s * 2)
            job = await client.get(f"/api/jobs/{job.id}", JobFacts)
            progress.update(bar, completed=job.done + job.failed)
    return job


def _sentence(job: JobFacts, done: str) -> str:
    text = f"{job.done:,} of {job.total:,} dead letters {done}"
    if job.failed:
        text += f", {job.failed:,} could not be and stay"
    match job.state:
        case JobState.CANCELLED:
            text += "; cancelled, the rest stays in its order"
        case JobState.FAILED:
            text += "; it ended early, the rest stays in its order"
        case JobState.RUNNING:
            text += "; it is being cancelled"
        case JobState.DONE:
            pass
    return f"{text}: {job.error}" if job.error else text


def _exit(code: int) -> None:
    if code != ExitCode.DONE:
        raise typer.Exit(code)
