"""
Compiles the files of a folder to schemas of events, or reports all their problems.

`EVENT.json` is the schema of the event `EVENT`, and `page/EVENT.json` that of the request
`EVENT` from a page. A file in another subfolder is not the schema of an event; other files
refer to it: `{"$ref": "shared/money.json"}`. References reach other
files of the folder and the meta-schema, by path or by the `$id` of a file. Nothing is ever
fetched.

An event may contain characters that a file name cannot have. A file name is therefore
percent-encoded like a URL: the event `order/paid` is in `order%2Fpaid.json`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final, TypeGuard
from urllib.parse import quote, unquote_to_bytes, urldefrag, urljoin

import jsonschema_rs
import orjson

from bridge.core.event_schemas import (
    BASE_URI,
    PAGE_BUDGET_STEPS,
    CompiledSchema,
    EventSchemas,
    render_pointer,
)
from bridge.core.message import event_problem
from bridge.core.schema_cost import (
    META_SCHEMAS,
    PATTERN_MAX_BYTES,
    CostAnalysis,
    Schema,
    child_of,
)

SUFFIX: Final = ".json"
_PAGE_FOLDER: Final = "page"
_DRAFT: Final = f"{META_SCHEMAS}schema"
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
# Memory limits of one pattern: compiled, and while it matches.
_PATTERNS: Final = jsonschema_rs.RegexOptions(
    size_limit=PATTERN_MAX_BYTES, dfa_size_limit=4 << 20
)
# The functions here, and the validator, call themselves for each level.
_LEVELS_MAX: Final = 200
_META_SCHEMA: Final = jsonschema_rs.Draft202012Validator(
    {"$ref": _DRAFT}, validate_formats=True, offline=True, mask="it"
)
_BAD_TYPE: Final = (
    "must be array, boolean, integer, null, number, object or string, or a list of them"
)
_BAD_PATTERN: Final = (
    "is not a pattern that matches in linear time: it must have no look-around, no "
    "back-references and no huge repetitions"
)


def parse_file_name(name: str) -> str:
    """
    Return the event whose schema is in the file `name`.

    Raises:
        ValueError: If the name is invalid; the text is the rest of a sentence about it.

    """
    stem = name.removesuffix(SUFFIX)
    if _BAD_PERCENT.search(stem):
        message = "has a % without two hexadecimal digits, write it as %25"
        raise ValueError(message)
    try:
        event = unquote_to_bytes(stem).decode()
    except UnicodeDecodeError as exc:
        message = "does not name an event: its %XX are not UTF-8"
        raise ValueError(message) from exc
    problem = event_problem(event)
    if problem:
        message = f"does not name an event: the name {problem}"
        raise ValueError(message)
    return event


def compile_schemas(
    files: Mapping[str, bytes], *, refuses_unknown: bool
) -> EventSchemas | list[str]:
    """
    Compile the files of a folder.

    Args:
        files: The content of each file, by its path in the folder, separated by `/`.
        refuses_unknown: Whether a message is refused if its event has no file.

    Returns:
        The schemas, or one line for each problem, which begins with the file.

    """
    problems: dict[str, list[str]] = {path: [] for path in files}
    documents: dict[str, Schema] = {}
    for path, content in files.items():
        document = _read(content)
        if isinstance(document, str):
            problems[path].append(document)
            continue
        problems[path] += _meta_problems(document)
        if not problems[path]:
            documents[path] = document
    compiler = _Compiler(documents, broken=files.keys() - documents.keys())
    schemas: dict[str, dict[str, CompiledSchema]] = {"": {}, _PAGE_FOLDER: {}}
    for path, document in documents.items():
        schema = compiler.compile(path, document)
        folder, _, name = path.rpartition("/")
        if isinstance(schema, list):
            problems[path] += schema
        elif folder in schemas:
            try:
                event = parse_file_name(name)
            except ValueError as exc:
                problems[path].append(str(exc))
                continue
            other = schemas[folder].setdefault(event, schema)
            if other is not schema:
                problems[path].append(f"is for the same event as {other.file}")
    lines = [f"{path}: {text}" for path, texts in problems.items() for text in texts]
    pages = {
        event: replace(schema, budget_steps=PAGE_BUDGET_STEPS)
        for event, schema in schemas[_PAGE_FOLDER].items()
    }
    return lines or EventSchemas(schemas[""], refuses_unknown, pages)


class _Compiler:
    """Compiles documents that refer only to each other."""

    def __init__(self, documents: Mapping[str, Schema], *, broken: set[str]) -> None:
        self._known: dict[str, Schema] = {}
        for path, document in documents.items():
            self._known[_uri(path)] = document
            if isinstance(document, dict) and isinstance(document.get("$id"), str):
                own = urljoin(_uri(path), str(document["$id"]))
                self._known[urldefrag(own).url] = document
        self._broken = {_uri(path) for path in broken}
        self._found_broken = False
        self._costs = CostAnalysis(
            {_uri(path): document for path, document in documents.items()}
        )

    def compile(self, path: str, document: Schema) -> CompiledSchema | list[str]:
        """
        Return the schema, or its problems with their places.

        An empty list means that it refers to an invalid file, which has its own problem.
        """
        self._found_broken = False
        cost = self._costs.cost(_uri(path))  # first: compiling has no bound of its own
        if isinstance(cost, str):
            return [cost]
        try:
            validator = jsonschema_rs.Draft202012Validator(
                document,
                validate_formats=True,
                base_uri=_uri(path),
                retriever=self._find,  # the default one would fetch
                pattern_options=_PATTERNS,
                mask="the value",
            )
        except (jsonschema_rs.ValidationError, ValueError) as exc:
            problems = list(self._bad_references(document, _uri(path), []))
            if self._found_broken:
                return problems
            return problems or [_compile_problem(exc)]
        return CompiledSchema(validator, file=path, cost=cost)

    def _find(self, uri: str) -> Schema:
        if uri in self._broken:
            self._found_broken = True
            return True
        if uri not in self._known:
            message = "is not in the folder"
            raise ValueError(message)
        return self._known[uri]

    def _bad_references(
        self, node: object, base: str, path: list[str | int]
    ) -> Iterator[str]:
        """Find the places of bad references, which the errors of the library omit."""
        if isinstance(node, list):
            for number, child in enumerate(node):
                yield from self._bad_references(child, base, [*path, number])
        if not isinstance(node, dict):
            return
        if isinstance(node.get("$id"), str):
            base = urljoin(base, node["$id"])
        reference = node.get("$ref")
        if isinstance(reference, str):
            problem = self._reference_problem(urljoin(base, reference))
            if problem:
                place = render_pointer([*path, "$ref"])
                yield f"#{place}: {reference!r} {problem}"
        for key, child in node.items():
            yield from self._bad_references(child, base, [*path, key])

    def _reference_problem(self, target: str) -> str | None:
        uri, fragment = urldefrag(target)
        if uri in self._broken or uri.startswith(META_SCHEMAS):
            return None
        if uri not in self._known:
            if uri.startswith(BASE_URI):
                return "names no file in the folder"
            return "is outside the folder; bridge fetches no schemas"
        node: object = self._known[uri]
        if not fragment.startswith("/"):
            return None  # an anchor, or the whole document
        for step in unquote_to_bytes(fragment).decode(errors="replace").split("/")[1:]:
            node = child_of(node, step.replace("~1", "/").replace("~0", "~"))
            if node is None:
                return "points to nothing"
        return None


def _read(content: bytes) -> Schema | str:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as exc:
        return f"is not JSON: {exc.msg} at line {exc.lineno} column {exc.colno}"
    if not _is_schema(document):
        return "is not a schema: expected an object, true or false"
    if not _is_shallow(document):
        return f"has more than {_LEVELS_MAX} nested arrays and objects"
    named = document.get("$schema") if isinstance(document, dict) else None
    if named is not None and str(named).removesuffix("#") != _DRAFT:
        return f"#/$schema: is for another draft, expected {_DRAFT}"
    return document


def _is_shallow(document: object) -> bool:
    level = [document]
    for _ in range(_LEVELS_MAX):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return not level


def _is_schema(document: object) -> TypeGuard[Schema]:
    return isinstance(document, dict | bool)


def _meta_problems(document: Schema) -> Iterator[str]:
    """Return the first error of the meta-schema at each place; it reports some twice."""
    found: dict[str, str] = {}
    for error in _META_SCHEMA.iter_errors(document):
        # Of the keywords in the meta-schema, only `type` has alternatives.
        text = _BAD_TYPE if error.kind.name == "anyOf" else error.message
        found.setdefault(render_pointer(error.instance_path), text)
    for place, text in found.items():
        yield f"#{place}: {text}"


def _compile_problem(exc: Exception) -> str:
    text = str(exc).partition("\n")[0]
    if not isinstance(exc, jsonschema_rs.ValidationError) or not exc.instance_path:
        return text
    is_pattern = exc.kind.name == "format" and exc.kind.value == "regex"
    text = _BAD_PATTERN if is_pattern else text
    return f"#{render_pointer(exc.instance_path)}: {text}"


def _uri(path: str) -> str:
    return BASE_URI + quote(path)
