"""The console's page contains no data and loads nothing from other hosts."""

import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest
import pytest_asyncio

from bridge.enums import DeadLetterReason
from tests.unit.http.conftest import Client, Open
from tests.unit.http.console_fakes import FakeConsole

TESTS = Path(__file__).parents[2]


PAGE = resources.files("bridge.http") / "console" / "assets"


@pytest_asyncio.fixture
async def client(open_app: Open) -> Client:
    """A client without a session."""
    return await open_app(FakeConsole().app())


# --- the page


@pytest.mark.parametrize("path", ["/console", "/console/app.js", "/console/style.css"])
async def test_the_page_is_public_and_has_a_strict_content_policy(
    client: Client, path: str
) -> None:
    """It contains no data, and an injected script or style does not run."""
    response = await client.get(path)

    policy = response.headers["Content-Security-Policy"].split("; ")
    assert response.status == 200
    assert policy[0] == "default-src 'none'"
    assert {
        "script-src 'self'",
        "style-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    } < set(policy)
    assert not any("unsafe" in rule or ":" in rule for rule in policy)
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_cached_file_is_not_sent_again(client: Client) -> None:
    """The chart library has 51 kB. After an upgrade the ETag differs."""
    tag = (await client.get("/console/app.js")).headers["ETag"]

    known = await client.get("/console/app.js", headers={"If-None-Match": tag})
    other = await client.get("/console/app.js", headers={"If-None-Match": '"other"'})

    assert (known.status, await known.read()) == (304, b"")
    assert other.status == 200


async def test_every_file_that_the_page_refers_to_exists(client: Client) -> None:
    """The references are relative, because a proxy may add a path prefix."""
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    modules = [
        f"console/{name}"
        for file in PAGE.iterdir()
        if file.name.endswith(".js")
        for name in re.findall(r'from "\./([\w.]+)"', file.read_text(encoding="utf-8"))
    ]
    found = re.findall(r'(?:href|src)="([^"#]+)"', html)

    assert len(found) == 7
    assert len(modules) > 10
    for path in {*found, *modules}:
        assert path.startswith("console/")
        assert (await client.get(f"/{path}")).status == 200, path
    beside = await client.get("/console/", allow_redirects=False)
    assert (beside.status, beside.headers["Location"]) == (308, "../console")
    above = await client.get("/", allow_redirects=False)
    assert (above.status, above.headers["Location"]) == (307, "console")


@pytest.mark.parametrize(
    "name", sorted(file.name for file in PAGE.iterdir() if file.name[-4:] != ".svg")
)
def test_no_file_of_the_page_uses_text_as_markup_or_another_host(
    name: str,
) -> None:
    """The content policy would block it and break the page."""
    text = (PAGE / name).read_text(encoding="utf-8")

    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert word not in text
    for word in ("style=", "<style", "javascript:", "http://", "https://", "//cdn"):
        assert word not in text
    assert not re.search(r"<script(?![^>]* src=)", text)
    assert not re.search(r"<[^>]* on\w+=", text)


def test_the_chart_library_equals_the_file_of_npm() -> None:
    """A vendored file can be verified, and updated by a copy."""
    found = subprocess.run(
        ["node", "-p", "require.resolve('uplot/package.json')"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assets = resources.files("bridge.http") / "assets"

    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        original = Path(found).parent / "dist" / name
        assert (assets / name).read_bytes() == original.read_bytes()


def test_the_license_of_the_chart_library_is_included() -> None:
    """The MIT license requires it."""
    assets = resources.files("bridge.http") / "assets"
    licence = (assets / "uPlot.LICENSE").read_text(encoding="utf-8")

    assert "MIT" in licence
    assert "Permission is hereby granted" in licence


def test_the_filter_offers_every_reason_for_a_dead_letter() -> None:
    """A new reason must be added to the page."""
    script = (PAGE / "dead.js").read_text(encoding="utf-8")
    offered = re.search(r"const REASONS = \[([^\]]*)\]", script)

    assert offered is not None
    assert re.findall(r'"(\w+)"', offered[1]) == [str(one) for one in DeadLetterReason]
