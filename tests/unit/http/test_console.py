"""The console's page: it holds nothing, and lets nothing in."""

import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest
import pytest_asyncio

from bridge.enums import DeadLetterCause
from tests.unit.http.conftest import Client, Open
from tests.unit.http.console_fakes import Door

TESTS = Path(__file__).parents[2]


PAGE = resources.files("bridge.http") / "console" / "assets"


@pytest_asyncio.fixture
async def client(open_app: Open) -> Client:
    """Somebody who looks at the page."""
    return await open_app(Door().app())


# --- the page


@pytest.mark.parametrize("path", ["/console", "/console/app.js", "/console/style.css"])
async def test_the_page_is_public_and_lets_nothing_in_from_outside(
    client: Client, path: str
) -> None:
    """It holds nothing; a script or style that gets into it does not run."""
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


async def test_what_is_known_already_is_not_sent_again(client: Client) -> None:
    """The chart library has 51 kB; and after an upgrade everything is new at once."""
    tag = (await client.get("/console/app.js")).headers["ETag"]

    known = await client.get("/console/app.js", headers={"If-None-Match": tag})
    other = await client.get("/console/app.js", headers={"If-None-Match": '"other"'})

    assert (known.status, await known.read()) == (304, b"")
    assert other.status == 200


async def test_everything_that_the_page_refers_to_is_there(client: Client) -> None:
    """By relative addresses: a proxy may have put a path before them."""
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
def test_no_file_of_the_page_makes_markup_of_text_or_asks_another_host(
    name: str,
) -> None:
    """`textContent` only; the policy would stop the rest, and break the page."""
    text = (PAGE / name).read_text(encoding="utf-8")

    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert word not in text
    for word in ("style=", "<style", "javascript:", "http://", "https://", "//cdn"):
        assert word not in text
    assert not re.search(r"<script(?![^>]* src=)", text)
    assert not re.search(r"<[^>]* on\w+=", text)


def test_the_chart_library_is_npms_byte_for_byte() -> None:
    """What is carried can be checked, and renewed by a copy."""
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


def test_the_chart_librarys_licence_comes_along() -> None:
    """MIT asks for it."""
    assets = resources.files("bridge.http") / "assets"
    licence = (assets / "uPlot.LICENSE").read_text(encoding="utf-8")

    assert "MIT" in licence
    assert "Permission is hereby granted" in licence


def test_the_filter_offers_every_reason_for_a_dead_letter() -> None:
    """A reason that is added is found without this page, too."""
    script = (PAGE / "dead.js").read_text(encoding="utf-8")
    offered = re.search(r"const REASONS = \[([^\]]*)\]", script)

    assert offered is not None
    assert re.findall(r'"(\w+)"', offered[1]) == [str(one) for one in DeadLetterCause]
