"""The programs of docs/requests.md answer requests, unchanged but for names and addresses."""

import asyncio
import re
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest

from tests.conftest import eventually
from tests.integration.programs import environment
from tests.integration.requests.conftest import (
    EVENT,
    ask,
    connected_page,
    request_settings,
    requesting_bridge,
)
from tests.integration.sockets.js_pages import Pages
from tests.local_node import LocalNode

_ROOT = Path(__file__).parents[3]
_COMMANDS = {"Python": (sys.executable, "-c"), "Node": ("node", "-e")}


def worker_of(language: str, broker: LocalNode, namespace: str) -> str:
    """Return the program of the page, with the names of a test."""
    text = (_ROOT / "docs" / "requests.md").read_text(encoding="utf-8")
    section = text.split(f"\n## A worker in {language}\n")[1]
    match = re.search(r"```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert match
    program = match[1].replace("bridge.requests", f"{namespace}.requests")
    for url in ("amqp://guest:guest@localhost/", "amqp://localhost"):
        program = program.replace(url, broker.url)
    return program.replace("jobs.cancel", f"{namespace}.jobs")


@pytest.mark.parametrize("language", ["Python", "Node"])
async def test_the_worker_of_the_page_answers(
    broker: LocalNode, namespace: str, pages: Pages, language: str
) -> None:
    """Readers copy it, and add their own work."""
    settings = request_settings(broker, namespace, request_timeout="600s")
    async with requesting_bridge(settings) as running:
        await connected_page(pages, running)
        process = await asyncio.create_subprocess_exec(
            *_COMMANDS[language],
            worker_of(language, broker, namespace),
            env=environment(),
            cwd=_ROOT / "tests",
            stdout=PIPE,
            stderr=STDOUT,
        )
        try:
            answers = []

            async def is_answered() -> bool:
                # Unroutable at once until the worker has bound its queue.
                answers.append(await ask(pages, {"id": 17}, within_s=30))
                return bool(answers[-1]["ok"]) or process.returncode is not None

            await eventually(is_answered, within_s=30)
            gone = await ask(pages, {"id": 0})
            # A page can send any JSON value.
            unexpected: list[object] = [None, [], "17", {"number": 17}]
            wrong = [await ask(pages, data, within_s=30) for data in unexpected]
            pages.command("send", "page", EVENT, {"id": 18})
            again = await ask(pages, {"id": 19})
        finally:
            if process.returncode is None:
                process.kill()
            output, _ = await process.communicate()

    assert answers[-1] == {"ok": True, "data": {"canceled": 17, "by": "ann"}}, output
    assert {answer["code"] for answer in answers[:-1]} <= {"unroutable"}
    error = {"code": "gone", "message": "there is no such job"}
    refused = {
        "ok": False,
        "code": "refused",
        "message": error["message"],
        "data": error,
    }
    assert [gone, *wrong] == [refused] * 5, output
    assert again["data"]["canceled"] == 19
