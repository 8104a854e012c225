"""
Measure the shape of the code in `bridge/`: sizes, comments, cycles, names.

    python tools/code_metrics.py            a summary, as Markdown
    python tools/code_metrics.py --names    also each duplicate class name and each cycle

Code lines are lines without blank lines, comments and docstrings. The architecture test
uses `import_cycles` and `duplicate_classes`.
"""

import argparse
import ast
import io
import statistics
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1] / "bridge"

_NO_CODE = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True, slots=True)
class Module:
    """One source file, parsed."""

    name: str
    path: Path
    source: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        """All lines, blank ones included."""
        return self.source.count("\n")


def load_modules(root: Path = ROOT) -> list[Module]:
    """Read and parse every module below `root`, in order of their paths."""
    modules = []
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        name = ".".join(part for part in parts if part != "__init__")
        source = path.read_text(encoding="utf-8")
        modules.append(Module(name, path, source, ast.parse(source)))
    return modules


def classes_of(module: Module) -> Iterator[ast.ClassDef]:
    """Yield every class of `module`, nested ones included."""
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))


def duplicate_classes(modules: Iterable[Module]) -> dict[str, list[str]]:
    """Return each class name that is used more than once, with its modules."""
    found: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for node in classes_of(module):
            found[node.name].append(module.name)
    return {name: where for name, where in sorted(found.items()) if len(where) > 1}


def protocols(modules: Iterable[Module]) -> list[str]:
    """Return the name of each class that derives from ``Protocol`` directly."""
    return [
        node.name
        for module in modules
        for node in classes_of(module)
        if any(_base_name(base) == "Protocol" for base in node.bases)
    ]


def _base_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def imports(modules: Sequence[Module]) -> dict[str, set[str]]:
    """Return which modules each module imports, imports for types included."""
    known = {module.name for module in modules}
    graph: dict[str, set[str]] = {}
    for module in modules:
        found: set[str] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= full & known or {node.module}
        graph[module.name] = (found & known) - {module.name}
    return graph


def import_cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                cycles.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return cycles


def code_and_comment_lines(module: Module) -> tuple[int, int]:
    """Return the numbers of code lines and of lines with a comment."""
    docstrings: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in _NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings), len(comments)


def report(modules: Sequence[Module]) -> list[str]:
    """Return the summary as lines of Markdown."""
    counted = {module.name: code_and_comment_lines(module) for module in modules}
    code = sum(lines for lines, _ in counted.values())
    comments = sum(lines for _, lines in counted.values())
    lengths = sorted(module.lines for module in modules)
    per_package = Counter(_package(module) for module in modules)
    per_package_code: Counter[str] = Counter()
    for module in modules:
        per_package_code[_package(module)] += counted[module.name][0]
    lines = [
        "| what | value |",
        "|---|---|",
        f"| modules | {len(modules)} |",
        f"| code lines | {code:,} |",
        f"| lines of a module: median, p90, max | {statistics.median(lengths):.0f}, "
        f"{lengths[int(len(lengths) * 0.9)]}, {lengths[-1]} |",
        f"| comment lines per code line | {comments / code:.3f} |",
        f"| import cycles | {len(import_cycles(imports(modules)))} |",
        f"| class names used twice | {len(duplicate_classes(modules))} |",
        f"| protocols | {len(protocols(modules))} |",
        "",
        "| package | modules | code lines |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {number} | {per_package_code[name]:,} |"
        for name, number in sorted(per_package.items())
    ]
    return lines


def _package(module: Module) -> str:
    parts = module.path.relative_to(ROOT).parts
    return "/".join(parts[:-1]) or "(top level)"


def main() -> None:
    """Print the summary of `bridge/`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", action="store_true", help="list what is counted")
    given = parser.parse_args()
    modules = load_modules()
    print("\n".join(report(modules)))
    if given.names:
        for name, where in duplicate_classes(modules).items():
            print(f"class {name}: {', '.join(where)}")
        for cycle in import_cycles(imports(modules)):
            print(f"cycle: {', '.join(cycle)}")
        print(f"protocols: {', '.join(protocols(modules))}")


if __name__ == "__main__":
    main()
