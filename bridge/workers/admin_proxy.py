"""
The operator port of several workers: `/metrics`, `/health/*`, `/console`, `/api/*`.

Requests are authenticated here, by a key or a session of the console. Requests about all
workers are answered with their merged answers; one worker answers each of the others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from enum import Enum, auto
from itertools import cycle
from typing import Final

from aiohttp import web

from bridge.core.client_address import parse_networks
from bridge.core.contracts.operator import OPERATIONS
from bridge.http.api.overview import RecentAges
from bridge.http.authentication import guarded, known_hosts_only
from bridge.http.console.sign_in import add_console_routes
from bridge.http.health import render_liveness, render_readiness
from bridge.http.operator import metrics_response
from bridge.http.publish import FIELDS_MAX_BYTES, body_too_large
from bridge.http.request_body import read_body
from bridge.http.responses import answer_with_problems, harden, problem
from bridge.settings.model import Settings
from bridge.wiring import (
    key_attempts_of,
    known_hosts_of,
    operator_key_of,
    operator_listener,
    proxies_of,
    publish_key_texts_of,
    publish_keys_of,
    sign_in_of,
    socket_options,
)
from bridge.workers.merged_answers import merge_overviews, merge_queues
from bridge.workers.pool import WorkerPool
from bridge.workers.worker_client import WorkerAnswer, WorkerRequest

_BODY_MAX_BYTES: Final = 1 << 20
_METRICS: Final = WorkerRequest("GET", "/metrics", timeout_s=3.0)
# What a worker counts between its last scrape and a crash is missing from the sum.
_SCRAPE_INTERVAL_S: Final = 5.0
_FORWARDED_HEADERS: Final = ("Authorization", "X-API-Key", "Content-Type")


class Target(Enum):
    """Which workers answer an operation."""

    FIRST = auto()  # it alone runs jobs and knows about them
    ANY = auto()  # each asks the store and all bridges that share it
    ALL = auto()  # the answers are merged


TARGETS: Final[Mapping[str, Target]] = {
    "getOverview": Target.ALL,
    "listQueues": Target.ALL,
    "listDeadLetters": Target.FIRST,
    "getDeadLetter": Target.FIRST,
    "redriveDeadLetters": Target.FIRST,
    "discardDeadLetters": Target.FIRST,
    "listJobs": Target.FIRST,
    "getJob": Target.FIRST,
    "cancelJob": Target.FIRST,
    "listUsers": Target.ANY,
    "getUser": Target.ANY,
    "kickUser": Target.ANY,
    "revokeUser": Target.ANY,
    "listRevocations": Target.ANY,
    "getInbox": Target.ANY,
    "getPosition": Target.ANY,
    "getPresence": Target.ANY,
    "traceMessage": Target.ANY,
}
# Operations with other authentication than the API.
SEPARATE: Final = frozenset({"publish", "getLive", "getReady", "getMetrics"})


class AdminProxy:
    """
    The application on the operator port.

    Attributes:
        app: The application.
        listener: Accepts its connections.
        settings: The current settings.

    """

    def __init__(self, settings: Settings, pool: WorkerPool) -> None:
        self.settings = settings
        self._pool = pool
        self._proxies = proxies_of(settings, pool.metrics)
        attempts = key_attempts_of(self._proxies, pool.metrics)
        self._publish_keys = publish_keys_of(settings, attempts)
        self._sign_in = sign_in_of(settings, attempts, self._proxies)
        self.listener = operator_listener(settings, self._proxies, pool.metrics)
        self._ages = RecentAges(pool.merged.age_buckets)
        self._next = cycle(pool.workers)
        hosts = known_hosts_of(settings)
        self.app = app = web.Application(
            middlewares=[answer_with_problems, known_hosts_only(hosts)],
            client_max_size=0,
        )
        app.on_response_prepare.append(harden)
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)
        app.router.add_get("/metrics", guarded(self._sign_in.keys, self._metrics))
        app.router.add_post("/api/publish", guarded(self._publish_keys, self._publish))
        add_console_routes(app, self._sign_in)
        for operation in OPERATIONS:
            if operation.name not in SEPARATE:
                is_open = operation.is_for_producers
                guard = self._publish_keys if is_open else self._sign_in
                handler = guarded(guard, self._handler_of(operation.name))
                app.router.add_route(operation.method, operation.route, handler)

    def apply(self, settings: Settings) -> None:
        """Use `settings` from now on."""
        self.settings = settings
        self._proxies.replace(parse_networks(settings.trusted_proxies))
        self._sign_in.apply(operator_key_of(settings))
        self._publish_keys.replace(publish_key_texts_of(settings))
        options = socket_options(settings, self._proxies)
        self.listener.limits.apply(options.limits, options.policy)

    def _handler_of(
        self, name: str
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            forwarded = await _forwarded(request, max_body_bytes=_BODY_MAX_BYTES)
            if forwarded is None:
                return problem(413, f"the body is over {_BODY_MAX_BYTES} bytes")
            forwarded = self._as_operator(forwarded)
            match TARGETS[name]:
                case Target.FIRST:
                    return await self._ask_first(forwarded)
                case Target.ANY:
                    return await self._ask_any(forwarded)
                case Target.ALL:
                    return await self._ask_all(name, forwarded)

        return handle

    # --- health and metrics

    async def _live(self, _request: web.Request) -> web.Response:
        # A worker that is stuck is restarted by itself. That is no reason to restart the
        # supervisor and with it all other workers.
        return render_liveness()

    async def _ready(self, _request: web.Request) -> web.Response:
        return render_readiness(*await self._pool.readiness())

    async def scrape_periodically(self) -> None:
        """Scrape the workers' metrics at intervals until canceled."""
        while True:
            await asyncio.sleep(_SCRAPE_INTERVAL_S)
            await self._scrape()

    async def _scrape(self) -> None:
        merged = self._pool.merged
        merged.take("supervisor", self._pool.metrics.render())
        starts = {worker.slot.index: worker.starts for worker in self._pool.workers}
        answers = await self._pool.ask_listening(self._as_operator(_METRICS))
        for worker, answer in answers:
            index = worker.slot.index
            if worker.starts != starts[index] or not worker.is_listening:
                continue  # it ended meanwhile, and its counters were kept
            if answer is None or answer.status != 200:
                merged.no_answer(index)
            else:
                merged.take(index, answer.body)

    async def _metrics(self, _request: web.Request) -> web.Response:
        await self._scrape()
        return metrics_response(self._pool.merged.render())

    # --- requests to workers

    def _as_operator(self, request: WorkerRequest) -> WorkerRequest:
        """Return `request` with the operator token: it was authenticated here."""
        token = operator_key_of(self.settings) or ""
        headers = {n: v for n, v in request.headers.items() if n == "Content-Type"}
        headers["Authorization"] = f"Bearer {token}"
        return replace(request, headers=headers)

    async def _publish(self, request: web.Request) -> web.Response:
        max_bytes = self.settings.max_message_bytes
        forwarded = await _forwarded(
            request, max_body_bytes=max_bytes + FIELDS_MAX_BYTES
        )
        if forwarded is None:
            return body_too_large(max_bytes)
        # In turn, so that all workers share the load. Only one is asked: a publish without
        # an answer may have been confirmed by the broker.
        for _ in self._pool.workers:
            worker = next(self._next)
            if worker.is_listening:
                return _response(await worker.ask(forwarded))
        return _response(None)

    async def _ask_first(self, request: WorkerRequest) -> web.Response:
        answer = await self._pool.workers[0].ask(request)
        return _response(answer, "worker 0 does not answer")

    async def _ask_any(self, request: WorkerRequest) -> web.Response:
        answer: WorkerAnswer | None = None
        for worker in self._pool.listening:
            answer = await worker.ask(request) or answer
            if answer is not None and answer.status == 200:
                break
        return _response(answer)

    async def _ask_all(self, name: str, request: WorkerRequest) -> web.Response:
        found = await self._pool.ask_listening(request)
        answers = [answer for _, answer in found if answer is not None]
        good = [answer for answer in answers if answer.status == 200]
        if not good:
            return _response(answers[0] if answers else None)
        if name == "listQueues":
            return _response(merge_queues(good))
        await self._scrape()
        reasons, _ = await self._pool.readiness()
        overview = merge_overviews(
            good,
            merged=self._pool.merged,
            reasons=reasons,
            age_s=self._ages.quantiles(),
        )
        return _response(overview)


async def _forwarded(
    request: web.Request, *, max_body_bytes: int
) -> WorkerRequest | None:
    """Return the request for a worker; ``None`` if its body is too large."""
    body = await read_body(request, max_bytes=max_body_bytes)
    if body is None:
        return None
    headers = {
        n: request.headers[n] for n in _FORWARDED_HEADERS if n in request.headers
    }
    # Not request.raw_path: clients of proxies may send a target that begins with a host.
    target = request.rel_url.raw_path_qs
    return WorkerRequest(request.method, target, headers, body)


def _response(
    answer: WorkerAnswer | None, fault: str = "no worker answers"
) -> web.Response:
    if answer is None:
        return problem(503, f"{fault}; try again", headers={"Retry-After": "2"})
    return web.Response(
        status=answer.status, body=answer.body, headers=dict(answer.headers)
    )
