"""Asking workers over their own doors: one request, one answer, within a deadline."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from yarl import URL

from bridge.workers.slot import Member

# The longest of the API's own deadlines is that of a trace over many dead letters.
_ANSWER_WITHIN_S: Final = 60.0
_KEPT_HEADERS: Final = ("Content-Type", "Retry-After", "WWW-Authenticate", "Allow")


@dataclass(frozen=True, slots=True)
class Question:
    """A request, as it is put to a worker; `target` is path and query, encoded."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    within_s: float = _ANSWER_WITHIN_S


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


async def ask(member: Member, question: Question) -> Answer | None:
    """
    Ask one worker; ``None`` if it is not there or takes too long.

    Cancellation:
        Safe; what was asked may still be done.

    """
    if member.session is None or not member.is_listening:
        return None
    try:
        async with (
            asyncio.timeout(question.within_s),
            member.session.request(
                question.method,
                URL(f"http://worker{question.target}", encoded=True),
                headers=question.headers,
                data=question.body or None,
                allow_redirects=False,
            ) as response,
        ):
            body = await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
    headers = {
        name: response.headers[name]
        for name in _KEPT_HEADERS
        if name in response.headers
    }
    return Answer(response.status, body, headers)


async def ask_all(
    members: list[Member], question: Question
) -> list[tuple[Member, Answer | None]]:
    """Ask several workers at once. Cancellation: as `ask`."""
    async with asyncio.TaskGroup() as tasks:
        asked = [
            (member, tasks.create_task(ask(member, question), name="ask a worker"))
            for member in members
        ]
    return [(member, task.result()) for member, task in asked]
