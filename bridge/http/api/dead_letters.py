"""`/api/dead`: look at dead letters, redrive them, discard them."""

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from bridge.core.contracts.operator.dead_letters import (
    DISCARD,
    GET_DEAD,
    GET_LETTER,
    REDRIVE,
    DeadQuery,
    Discard,
    Filter,
    JobStarted,
    LetterDetail,
    LetterFacts,
    LetterPage,
    LetterQuery,
    Redrive,
    Selection,
    Would,
)
from bridge.core.contracts.operator.jobs import JobKind
from bridge.core.contracts.operator.operation import NoBody, NoQuery
from bridge.core.dead_letter import COUNTED_BY_BROKER, Count, Letter, LetterFilter
from bridge.core.message import Delivery
from bridge.core.readable_headers import readable_properties, readable_table
from bridge.enums import DeadLetterCause
from bridge.http.api.dead_letter_pages import PageScan, parse_place
from bridge.http.api.endpoint import Api, ApiProblem, Asked, Reply
from bridge.http.jobs import BusyError, Job, JobBoard

Matches = Callable[[Letter], bool]


class DeadLetters(Protocol):
    """The queue (broker/dead_letters.py)."""

    async def look(self, begin: Callable[[], Callable[[Letter], bool]]) -> Count:
        """Show letters, oldest first, until what `begin` returned has enough."""

    async def depth(self) -> int:
        """Return how many there are."""

    async def find(self, letter_id: str) -> tuple[Letter, Delivery] | None:
        """Return one letter."""

    async def count(self, matches: Matches, *, at_most: int | None = None) -> Count:
        """Count those that match."""

    async def redrive(
        self, matches: Matches, among: Count, *, rate_per_s: float, progress: Job
    ) -> None:
        """Send those that match back."""

    async def discard(self, matches: Matches, among: Count, *, progress: Job) -> None:
        """Drop those that match."""


def add_dead_routes(api: Api, letters: DeadLetters, board: JobBoard) -> None:
    """Serve the dead letters; jobs on them are started on `board`."""
    desk = _Desk(letters, board)
    api.add(GET_DEAD, desk.list)
    api.add(GET_LETTER, desk.show)
    api.add(REDRIVE, desk.redrive)
    api.add(DISCARD, desk.discard)


class _Desk:
    def __init__(self, letters: DeadLetters, board: JobBoard) -> None:
        self._letters = letters
        self._board = board

    async def list(self, asked: Asked[DeadQuery, NoBody]) -> LetterPage:
        query = asked.query
        wanted = LetterFilter(
            reason=query.reason,
            user=query.user,
            event=query.event,
            since_s=query.since,
            until_s=query.until,
        )
        after = parse_place(query.cursor) if query.cursor is not None else None
        scan = PageScan(wanted, query.limit, after)

        def begin() -> Callable[[Letter], bool]:
            nonlocal scan
            scan = PageScan(wanted, query.limit, after)
            return scan.take

        seen = await self._letters.look(begin)
        return LetterPage(
            items=[LetterFacts(**_facts(letter)) for letter in scan.items],
            next=scan.next,
            total=seen.depth,
            scanned=scan.scanned,
        )

    async def show(self, asked: Asked[LetterQuery, NoBody]) -> LetterDetail:
        found = await self._letters.find(asked.path["id"])
        if found is None:
            detail = (
                "there is no such dead letter; it may have been redriven or discarded"
            )
            raise ApiProblem(404, detail, pointer="id")
        return _detail(*found, with_body=asked.query.body)

    async def redrive(self, asked: Asked[NoQuery, Redrive]) -> Reply:
        body = asked.body
        matches, among = await self._select(body)
        if body.dry_run:
            return Reply(200, Would(would=among.matching))

        async def work(job: Job) -> None:
            await self._letters.redrive(
                matches, among, rate_per_s=body.rate_per_s, progress=job
            )

        return self._start(JobKind.REDRIVE, among, work)

    async def discard(self, asked: Asked[NoQuery, Discard]) -> Reply:
        body = asked.body
        matches, among = await self._select(body)
        if body.dry_run:
            return Reply(200, Would(would=among.matching))
        if body.confirm != among.matching:
            detail = f"{among.matching} dead letters match; say so with confirm"
            raise ApiProblem(409, detail, pointer="/confirm")

        async def work(job: Job) -> None:
            await self._letters.discard(matches, among, progress=job)

        return self._start(JobKind.DISCARD, among, work)

    async def _select(self, selection: Selection) -> tuple[Matches, Count]:
        """Return what is meant, and how many that are now."""
        running = self._board.running()
        if running is not None and not selection.dry_run:
            raise ApiProblem(409, str(BusyError(running.id)))
        matches = _matches(selection)
        if selection.all:
            depth = await self._letters.depth()
            return matches, Count(depth, depth)
        at_most = len(set(selection.ids)) if selection.ids is not None else None
        return matches, await self._letters.count(matches, at_most=at_most)

    def _start(
        self, kind: JobKind, among: Count, work: Callable[[Job], Awaitable[None]]
    ) -> Reply:
        try:
            job = self._board.start(kind, total=among.matching, work=work)
        except BusyError as exc:
            raise ApiProblem(409, str(exc)) from exc
        return Reply(202, JobStarted(job=job.facts()))


def _matches(selection: Selection) -> Matches:
    if selection.ids is not None:
        ids = frozenset(selection.ids)
        return lambda letter: letter.id in ids
    if selection.filter is not None:
        return _filter(selection.filter).matches
    return LetterFilter().matches


def _filter(given: Filter) -> LetterFilter:
    return LetterFilter(
        reason=None if given.reason is None else DeadLetterCause(given.reason),
        user=given.user,
        event=given.event,
        since_s=given.since,
        until_s=given.until,
    )


def _facts(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "reason_text": letter.reason.explanation,
        "error": letter.error,
        "user": letter.user,
        "event": letter.event,
        "message_id": letter.message_id,
        "dead_s": letter.dead_s,
        "origin": " → ".join(
            part for part in (letter.origin_exchange, letter.origin_queue) if part
        ),
        "attempts": letter.attempts,
        "redrives": letter.redrives,
        "bytes": letter.body_bytes,
    }


def _detail(letter: Letter, delivery: Delivery, *, with_body: bool) -> LetterDetail:
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


def _explanation(letter: Letter) -> str:
    sentences = [f"It is here because {letter.reason.explanation}."]
    if letter.error:
        sentences.append(f"In detail: {letter.error}.")
    if letter.redrives:
        times = "once" if letter.redrives == 1 else f"{letter.redrives} times"
        sentences.append(f"It was redriven {times} before, and came back.")
    sentences.append(_ADVICE[letter.reason])
    return " ".join(sentences)


_NEVER: Final = "A redrive will bring it back here: mend the producer, and discard it."
_ADVICE: Final[Mapping[DeadLetterCause, str]] = {
    DeadLetterCause.MALFORMED_BODY: _NEVER,
    DeadLetterCause.TOO_LARGE: (
        "Raise BRIDGE_MAX_MESSAGE_BYTES and redrive it, or discard it."
    ),
    DeadLetterCause.BAD_USER: _NEVER,
    DeadLetterCause.BAD_EVENT: _NEVER,
    DeadLetterCause.SCHEMA: (
        "Mend the schema in BRIDGE_SCHEMAS and redrive it, or the producer, and discard it."
    ),
    DeadLetterCause.ATTEMPTS_EXHAUSTED: (
        "The log of that time says what failed: mend it, then redrive it."
    ),
    DeadLetterCause.CRASHED: (
        "Keep its body for whoever mends the bridge; do not redrive it before that."
    ),
    DeadLetterCause.EXPIRED: (
        "A redrive gives it its time to live anew; discard it if it is of no use now."
    ),
    DeadLetterCause.OTHER: "Look at its headers before a redrive.",
}
