"""`/api/dead`: list and show dead letters, redrive them, discard them."""

import base64
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bridge.amqp.dead_letters.operations import DeadLetterQueue
from bridge.core.contracts.operator.dead_letters import (
    DISCARD,
    GET_DEAD,
    GET_LETTER,
    REDRIVE,
    DeadLetterSelection,
    DeadQuery,
    Discard,
    JobStarted,
    LetterDetail,
    LetterFacts,
    LetterPage,
    LetterQuery,
    Redrive,
    Would,
)
from bridge.core.contracts.operator.jobs import JobKind
from bridge.core.contracts.operator.operation import NoQuery
from bridge.core.dead_letter import COUNTED_BY_BROKER, DeadLetterCount, StoredDeadLetter
from bridge.core.message import Delivery
from bridge.core.readable_headers import readable_properties, readable_table
from bridge.http.api.dead_letter_pages import PageScan, parse_page_end
from bridge.http.api.endpoint import Api, ApiProblem, ApiRequest, Reply
from bridge.http.jobs import BusyError, JobBoard, Work


def add_dead_letter_routes(api: Api, letters: DeadLetterQueue, board: JobBoard) -> None:
    """Serve the dead letters; redrives and discards run as jobs on `board`."""
    handlers = _DeadLetterHandlers(letters, board)
    api.add(GET_DEAD, handlers.list)
    api.add(GET_LETTER, handlers.show)
    api.add(REDRIVE, handlers.redrive)
    api.add(DISCARD, handlers.discard)


class _DeadLetterHandlers:
    def __init__(self, letters: DeadLetterQueue, board: JobBoard) -> None:
        self._letters = letters
        self._board = board

    async def list(self, request: ApiRequest[DeadQuery]) -> LetterPage:
        query = request.query
        wanted = query.filter
        after = parse_page_end(query.cursor) if query.cursor is not None else None
        scan = PageScan(wanted, query.limit, after)

        def begin() -> Callable[[StoredDeadLetter], bool]:
            # Called a second time if the cached head of the queue was not enough.
            nonlocal scan
            scan = PageScan(wanted, query.limit, after)
            return scan.take

        seen = await self._letters.browse(begin)
        return LetterPage(
            items=[LetterFacts(**_facts(letter)) for letter in scan.items],
            next=scan.next,
            total=seen.depth,
            scanned=scan.scanned,
        )

    async def show(self, request: ApiRequest[LetterQuery]) -> LetterDetail:
        found = await self._letters.find(request.path["id"])
        if found is None:
            detail = (
                "there is no such dead letter; it may have been redriven or discarded"
            )
            raise ApiProblem(404, detail, pointer="id")
        return _detail(*found, with_body=request.query.body)

    async def redrive(self, request: ApiRequest[NoQuery, Redrive]) -> Reply:
        body = request.body
        among = await self._count(body)
        if body.dry_run:
            return Reply(200, Would(would=among.matching))
        return self._start(
            JobKind.REDRIVE,
            among,
            lambda job: self._letters.redrive(body, among, progress=job),
        )

    async def discard(self, request: ApiRequest[NoQuery, Discard]) -> Reply:
        body = request.body
        among = await self._count(body)
        if body.dry_run:
            return Reply(200, Would(would=among.matching))
        if body.confirm != among.matching:
            detail = f"{among.matching} dead letters match; confirm that number"
            raise ApiProblem(409, detail, pointer="/confirm")
        return self._start(
            JobKind.DISCARD,
            among,
            lambda job: self._letters.discard(body, among, progress=job),
        )

    async def _count(self, selection: DeadLetterSelection) -> DeadLetterCount:
        # Refused before counting: the count would wait for the running job.
        running = self._board.running()
        if running is not None and not selection.dry_run:
            raise ApiProblem(409, str(BusyError(running.id)))
        return await self._letters.count(selection)

    def _start(self, kind: JobKind, among: DeadLetterCount, work: Work) -> Reply:
        try:
            job = self._board.start(kind, total=among.matching, work=work)
        except BusyError as exc:
            raise ApiProblem(409, str(exc)) from exc
        return Reply(202, JobStarted(job=job.facts()))


def _facts(letter: StoredDeadLetter) -> dict[str, Any]:
    origin = filter(None, (letter.origin_exchange, letter.origin_queue))
    return asdict(letter) | {
        "reason_text": letter.reason.explanation,
        "origin": " → ".join(origin),
        "bytes": letter.body_bytes,
    }


def _detail(
    letter: StoredDeadLetter, delivery: Delivery, *, with_body: bool
) -> LetterDetail:
    properties = delivery.properties
    text: str | None = None
    encoded: str | None = None
    if with_body:
        try:
            text = delivery.body.decode()
        except UnicodeDecodeError:
            encoded = base64.b64encode(delivery.body).decode()
    return LetterDetail(
        **_facts(letter),
        explanation=_explanation(letter),
        properties=readable_properties(properties),
        headers=readable_table(properties.headers, without=COUNTED_BY_BROKER),
        body_text=text,
        body_base64=encoded,
    )


def _explanation(letter: StoredDeadLetter) -> str:
    sentences = [f"Reason: {letter.reason.explanation}."]
    if letter.error:
        sentences.append(f"Details: {letter.error}.")
    if letter.redrives:
        times = "once" if letter.redrives == 1 else f"{letter.redrives} times"
        sentences.append(
            f"It was redriven {times} before and became a dead letter again."
        )
    sentences.append(letter.reason.advice)
    return " ".join(sentences)
