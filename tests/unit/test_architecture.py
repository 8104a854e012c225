"""The drawing of the house, which is the test."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "bridge"
MODULES = sorted(PACKAGE.rglob("*.py"))

HOUSE = """
names < errors < core < settings logs metrics tracing < merged_metrics
< broker inbox sockets auth schema_folder < fencing pump < web < options < operators
< app doctor < signals < workers < cli < __main__
"""
FLOOR = {name: n for n, floor in enumerate(HOUSE.split("<")) for name in floor.split()}

# The libraries that one part alone knows; their errors end there.
ONLY_IN = {
    "aio_pika": {"broker"},
    "aiormq": {"broker"},
    "pamqp": {"broker"},
    "socketio": {"cli"},  # `bridge tail` is a client, like a browser
    "engineio": set(),
    "jwt": {"auth"},
    "cryptography": {"auth"},
    "jsonschema_rs": {"core"},
    "prometheus_client": {"metrics", "merged_metrics"},
    "opentelemetry": {"tracing"},
    "pydantic_settings": {"settings"},
    "typer": {"cli"},
    "rich": {"cli"},
}


def part_of(path: Path) -> str:
    """Name the part of bridge that the module at `path` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return each imported module with the names taken from it, types included."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module or "", tuple(a.name for a in node.names)))
    return found


def parts_imported(path: Path) -> set[str]:
    """Name the parts of bridge that the module at `path` imports."""
    parts: set[str] = set()
    for module, names in imports_of(path):
        package, _, rest = module.partition(".")
        if package != "bridge":
            continue
        assert names, f"{path}: import bridge parts with from"
        parts |= {rest.split(".")[0]} if rest else set(names)
    return parts - {"__version__"}


def test_the_drawing_names_every_part_of_the_house() -> None:
    """A new part finds its floor first, and then its lines."""
    parts = {part_of(path) for path in MODULES} - {"__init__"}

    assert parts <= set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A part imports itself and lower floors; never a neighbour, never upstairs."""
    part = part_of(path)

    for other in parts_imported(path) - {part}:
        assert part in FLOOR, f"{path} may import nothing"
        assert FLOOR[other] < FLOOR[part], f"{path} may not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_library_lives_where_it_belongs(path: Path) -> None:
    """So that its faults, and a change of it, stay there too."""
    for module, _ in imports_of(path):
        homes = ONLY_IN.get(module.partition(".")[0])
        assert homes is None or part_of(path) in homes, f"{path} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_stand_at_the_top(path: Path) -> None:
    """One inside a function hides a cycle, or a cost, from the reader."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(outer):
                assert not isinstance(node, ast.Import | ast.ImportFrom), (
                    f"{path}:{node.lineno}: import inside a function"
                )


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if part_of(path) == "core"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_the_core_awaits_nothing_and_asks_nobody(path: Path) -> None:
    """No await, no I/O, no clock, no chance: they arrive as arguments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    forbidden = {"asyncio", "time", "datetime", "random", "secrets", "os", "socket"}

    for module, _ in imports_of(path):
        assert module.partition(".")[0] not in forbidden, f"{path} imports {module}"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_module_says_what_it_is_for_and_is_one_idea_long(path: Path) -> None:
    """Aim below 200 lines, stop at 400 (the guide, 2.5)."""
    text = path.read_text(encoding="utf-8")

    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert text.count("\n") <= 400, f"{path} is too long"
