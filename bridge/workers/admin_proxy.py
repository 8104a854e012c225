"""
The operator door of several workers: `/metrics`, `/health/*`, `/console`, `/api/*`.

Everybody shows a key, or a session of the console, here; what is about all workers is put
together from their answers (`merging`), and everything else is one worker's to answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from itertools import cycle
from typing import Final

import orjson
from aiohttp import web

from bridge.core.client_address import parse_networks
from bridge.core.contracts.operator import OPERATIONS
from bridge.http.api.overview import RecentAges
from bridge.http.authentication import guarded
from bridge.http.console.sign_in import add_console_routes
from bridge.http.problems import answer_with_problems, harden, problem
from bridge.http.request_body import read_body
from bridge.settings.model import Settings
from bridge.wiring import operator_key_of, sign_in_of
from bridge.workers.merging import (
    merge_overviews,
    merge_queues,
)
from bridge.workers.pool import Crew
from bridge.workers.slot import Member
from bridge.workers.worker_client import Answer, Question, ask, ask_all

# Around the data of a publish stand other fields; the worker looks at it more closely.
_FIELDS_MAX_BYTES: Final = 8192
_BODY_MAX_BYTES: Final = 1 << 20
_METRICS: Final = Question("GET", "/metrics", within_s=3.0)
# What a worker counts between its last scrape and its sudden end is not in the sum.
_LOOK_EVERY_S: Final = 5.0
_GIVEN: Final = ("Authorization", "X-API-Key", "Content-Type")

Ask = Callable[[Question], Awaitable[web.Response]]
Merge = Callable[[list[Answer], Question], Answer]

# Asked of all workers, and how the answers become one.
MERGED: Final[Mapping[str, Merge]] = {
    "listQueues": merge_queues,
}
# The board of jobs is the first worker's: letters are redriven once, and asked about there.
FIRST_WORKERS: Final = frozenset(
    {
        "listDeadLetters", "getDeadLetter", "redriveDeadLetters", "discardDeadLetters",
        "listJobs", "getJob", "cancelJob",
    }
)  # fmt: skip
# Whichever worker is there: it asks all bridges on the store itself, or the store.
ANY_WORKERS: Final = frozenset(
    {"listUsers", "getUser", "kickUser", "getInbox", "traceMessage"}
)
OWN: Final = frozenset({"getOverview"})
# Behind other guards than the rest.
APART: Final = frozenset({"publish", "getLive", "getReady", "getMetrics"})


class Door:
    """
    The door, and what it keeps looking at.

    Attributes:
        app: Serves it.
        settings: As they are now.

    """

    def __init__(self, settings: Settings, crew: Crew) -> None:
        self.settings = settings
        self._crew = crew
        self._sign_in = sign_in_of(settings)
        self._ages = RecentAges(crew.merged.age_buckets)
        self._next = cycle(crew.members)
        self.app = app = web.Application(
            middlewares=[answer_with_problems], client_max_size=0
        )
        app.on_response_prepare.append(harden)
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)
        app.router.add_get("/metrics", guarded(self._sign_in.keys, self._metrics))
        # The worker looks at the key: others than the operator's open this too.
        app.router.add_post("/api/publish", self._publish)
        add_console_routes(app, self._sign_in)
        self._add_api()

    def apply(self, settings: Settings) -> None:
        """Open to the keys of `settings` from now on."""
        self.settings = settings
        self._sign_in.apply(
            operator_key_of(settings), parse_networks(settings.trusted_proxies)
        )

    def _add_api(self) -> None:
        for operation in OPERATIONS:
            if operation.name in APART:
                continue
            handler = guarded(self._sign_in, self._handler_of(operation.name))
            self.app.router.add_route(operation.method, operation.route, handler)

    def _handler_of(
        self, name: str
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        asks: Ask
        if name in OWN:
            asks = self._overview
        elif name in FIRST_WORKERS:
            asks = self._ask_first
        elif name in ANY_WORKERS:
            asks = self._ask_any
        else:
            merge = MERGED[name]

            async def asks(question: Question) -> web.Response:
                return await self._ask_all(question, merge)

        async def handle(request: web.Request) -> web.StreamResponse:
            question = await self._question(request, max_body_bytes=_BODY_MAX_BYTES)
            if question is None:
                return problem(413, f"the body is over {_BODY_MAX_BYTES} bytes")
            return await asks(question)

        return handle

    # --- health and metrics

    async def _live(self, _request: web.Request) -> web.Response:
        # As for one process: answering is the proof. Workers that are stuck are ended
        # and started again; that is no reason to end the others with them.
        return _json(200, {"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        reasons = await self._crew.unready_reasons()
        body = {"ready": not reasons, "reasons": reasons}
        return _json(503 if reasons else 200, body)

    async def watch(self) -> None:
        """Look at what workers count, every now and then; for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        merged = self._crew.merged
        merged.take("supervisor", self._crew.metrics.render())
        members = self._crew.listening
        starts = [member.starts for member in members]
        found = await ask_all(members, self._with_key(_METRICS))
        for (member, answer), start in zip(found, starts, strict=True):
            if member.starts != start or not member.is_listening:
                continue  # it has ended meanwhile, and was counted as ended
            if answer is None or answer.status != 200:
                merged.no_answer(member.place.index)
            else:
                merged.take(member.place.index, answer.body)

    async def _metrics(self, _request: web.Request) -> web.Response:
        await self._look()
        return web.Response(
            body=self._crew.merged.render(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    # --- asking workers

    async def _question(
        self, request: web.Request, *, max_body_bytes: int
    ) -> Question | None:
        body = await read_body(request, max_bytes=max_body_bytes)
        if body is None:
            return None
        headers = {n: request.headers[n] for n in _GIVEN if n in request.headers}
        # Not as it came: it may begin with a host.
        target = request.rel_url.raw_path_qs
        return Question(request.method, target, headers, body)

    def _with_key(self, question: Question) -> Question:
        """Ask as the operator: who asks has shown the token, or a session, here."""
        token = operator_key_of(self.settings) or ""
        headers = {n: v for n, v in question.headers.items() if n == "Content-Type"}
        headers["Authorization"] = f"Bearer {token}"
        return Question(
            question.method,
            question.target,
            headers,
            question.body,
            question.within_s,
        )

    async def _publish(self, request: web.Request) -> web.Response:
        max_bytes = self.settings.max_message_bytes
        question = await self._question(
            request, max_body_bytes=max_bytes + _FIELDS_MAX_BYTES
        )
        if question is None:
            detail = f"the body is too large: data may have {max_bytes} bytes"
            return problem(413, detail)
        return _response(await self._any_answer(question))

    async def _any_answer(self, question: Question) -> Answer | None:
        """Ask the next worker in turn that is there."""
        for _ in self._crew.members:
            member = next(self._next)
            if member.is_listening:
                # Asked once: a publish that got no answer may have been done.
                return await ask(member, question)
        return None

    async def _ask_first(self, question: Question) -> web.Response:
        first = self._crew.members[0]
        return _response(await ask(first, self._with_key(question)), first)

    async def _ask_any(self, question: Question) -> web.Response:
        answer: Answer | None = None
        for member in self._crew.listening:
            answer = await ask(member, self._with_key(question)) or answer
            if answer is not None and answer.status == 200:
                break
        return _response(answer)

    async def _answers(self, question: Question) -> list[Answer]:
        found = await ask_all(self._crew.listening, self._with_key(question))
        return [answer for _, answer in found if answer is not None]

    async def _ask_all(self, question: Question, merge: Merge) -> web.Response:
        answers = await self._answers(question)
        good = [answer for answer in answers if answer.status < 300]
        if good:
            return _response(merge(good, question))
        return _response(answers[0] if answers else None)

    async def _overview(self, question: Question) -> web.Response:
        answers = await self._answers(question)
        good = [answer for answer in answers if answer.status == 200]
        if not good:
            return _response(answers[0] if answers else None)
        await self._look()
        overview = merge_overviews(
            good,
            merged=self._crew.merged,
            reasons=await self._crew.unready_reasons(),
            age_s=self._ages.quantiles(),
        )
        return _response(overview)


def _response(answer: Answer | None, member: Member | None = None) -> web.Response:
    if answer is None:
        who = "no worker" if member is None else f"worker {member.place.index} does not"
        word = "answers" if member is None else "answer"
        return problem(
            503, f"{who} {word} now; ask again", headers={"Retry-After": "2"}
        )
    return web.Response(
        status=answer.status, body=answer.body, headers=dict(answer.headers)
    )


def _json(status: int, body: object) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(body), content_type="application/json"
    )
