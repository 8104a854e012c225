"""The layers of bridge and the packages that may import each library."""

import ast
import re
from functools import cache
from pathlib import Path

from tools.code_metrics import (
    Module,
    duplicate_classes,
    import_cycles,
    imports,
    load_modules,
)

PACKAGE = Path(__file__).parents[2] / "bridge"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the lowest layer to the highest. A part imports only lower layers and itself.
LAYERS = """
enums < errors < log_writer < core < clock < settings logging metrics tracing
< amqp inbox auth schema_folder server_certificate trusted_proxies < sockets fencing outbox event_publisher presence
< pipeline gauges < readiness < http < wiring < app doctor
< child_reaper < signals < workers demo < cli < __main__
"""
LAYER = {name: n for n, layer in enumerate(LAYERS.split("<")) for name in layer.split()}

# Libraries that only these modules and packages import; their errors do not leave them.
ONLY_IN = {
    "aio_pika": {"amqp", "demo.worker"},  # that is a program like those of users
    "aiormq": {"amqp"},
    "pamqp": {"amqp"},
    "sqlite3": {"inbox.sqlite"},
    "hiredis": {"inbox.redis"},
    "socketio": {"cli.tail"},  # `bridge tail` is a client, as a browser is
    "engineio": set(),
    "jwt": {"auth"},
    "cryptography": {"auth", "server_certificate"},
    "jsonschema_rs": {"core"},
    "prometheus_client": {"metrics", "workers.merged_metrics"},
    "opentelemetry": {"tracing"},
    "pydantic_settings": {"settings"},
    "typer": {"cli"},
    "rich": {"cli"},
}


def part_of(path: Path) -> str:
    """Return the top-level module or package that contains the module at `path`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(path: Path) -> str:
    """Return the dotted name below ``bridge`` of the module at `path`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def modules() -> list[Module]:
    """Return all modules of bridge, parsed once for the tests that need them."""
    return load_modules()


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the parsed module at `path`."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return each imported module with the names taken from it, types included."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(tree_of(path)):
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


def test_every_part_has_a_layer() -> None:
    """A new top-level module or package is added to `LAYERS` first."""
    parts = {part_of(path) for path in MODULES} - {"__init__"}

    assert parts == set(LAYER)


def test_the_package_docstring_lists_the_parts_in_the_order_of_their_layers() -> None:
    """It is the first page that a new reader opens."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    lines = (ast.get_docstring(tree) or "").splitlines()
    entries = [line.strip() for line in lines if line.startswith("    ")]
    listed = [
        part.strip()
        for entry in entries
        for part in entry.partition("  ")[0].split(",")
    ]

    assert sorted([*listed, "__main__"]) == sorted(LAYER)
    assert listed == sorted(listed, key=LAYER.__getitem__)


def test_imports_point_down() -> None:
    """A part imports itself and lower layers only."""
    for path in MODULES:
        part = part_of(path)
        for other in parts_imported(path) - {part}:
            assert part in LAYER, f"{path} may import nothing"
            assert LAYER[other] < LAYER[part], f"{path} may not import {other}"


def test_a_library_is_imported_only_by_its_package() -> None:
    """A change of the library, or another one in its place, changes that package only."""
    for path in MODULES:
        name = module_name(path)
        for module, _ in imports_of(path):
            homes = ONLY_IN.get(module.partition(".")[0])
            assert homes is None or any(
                name == home or name.startswith(home + ".") for home in homes
            ), f"{path} imports {module}"


def test_imports_are_at_the_top_of_the_module() -> None:
    """An import inside a function hides a cycle or a cost from the reader."""
    for path in MODULES:
        for outer in ast.walk(tree_of(path)):
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(outer):
                    assert not isinstance(node, ast.Import | ast.ImportFrom), (
                        f"{path}:{node.lineno}: import inside a function"
                    )


def test_core_has_no_await_no_io_and_no_clock() -> None:
    """Time and random numbers arrive as arguments."""
    forbidden = {"asyncio", "time", "datetime", "random", "secrets", "os", "socket"}
    for path in MODULES:
        if part_of(path) != "core":
            continue
        for module, _ in imports_of(path):
            assert module.partition(".")[0] not in forbidden, f"{path} imports {module}"
        for node in ast.walk(tree_of(path)):
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), path


def test_each_module_has_a_docstring() -> None:
    """The first line of a module says what it is for."""
    assert [path for path in MODULES if not ast.get_docstring(tree_of(path))] == []


def test_no_modules_import_each_other() -> None:
    """Imports for types count: a cycle means that two modules are one idea."""
    assert import_cycles(imports(modules())) == []


def test_class_names_are_unique() -> None:
    """A search for a name finds one class."""
    assert duplicate_classes(modules()) == {}


def test_the_architecture_page_has_the_same_layers() -> None:
    """The page quotes the list of this file."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")

    assert LAYERS.strip() in page


def test_the_architecture_page_names_existing_modules() -> None:
    """A page that names a module that was moved misleads its reader."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    contributing = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:bridge/)?[a-z_/]+\.py)`", page + contributing))

    for name in named:
        paths = (PACKAGE.parent / name, PACKAGE / name)
        assert any(map(Path.is_file, paths)) or list(PACKAGE.rglob(name)), name
