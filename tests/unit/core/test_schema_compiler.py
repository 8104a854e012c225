"""Compiling the files of a folder to schemas, and all problems of bad files."""

import http.server
import threading
from collections.abc import Iterator
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.event_schemas import EventSchemas
from bridge.core.message import event_problem
from bridge.core.schema_compiler import compile_schemas, parse_file_name


def compiled(**files: object) -> EventSchemas | list[str]:
    """Compile files named without `.json`; `__` stands for the slash of a subfolder."""
    contents = {
        name.replace("__", "/") + ".json": value
        if isinstance(value, bytes)
        else orjson.dumps(value)
        for name, value in files.items()
    }
    return compile_schemas(contents, refuses_unknown=False)


def accepts(found: EventSchemas | list[str], event: str, data: object) -> bool:
    assert isinstance(found, EventSchemas)
    schema = found.find(event)
    assert schema is not None
    return schema.violation(data, size_bytes=len(orjson.dumps(data))) is None


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("note.json", "note"),
        ("order%2Fpaid.json", "order/paid"),
        ("%2E..json", ".."),
        ("50%25.json", "50%"),
        ("gr%C3%B6%C3%9Fe.json", "größe"),
        ("größe.json", "größe"),
    ],
)
def test_a_file_name_names_its_event_percent_encoded(name: str, event: str) -> None:
    """An event may contain characters that a file name cannot have."""
    assert parse_file_name(name) == event


@given(st.text(min_size=1, max_size=128).filter(lambda text: not event_problem(text)))
def test_every_event_can_have_a_file(event: str) -> None:
    """Percent-encoded UTF-8 names any event."""
    assert parse_file_name(quote(event, safe="") + ".json") == event


def test_all_problems_of_all_files_are_reported_with_their_places() -> None:
    """An operator fixes them in one round."""
    problems = compiled(
        broken=b'{\n  "type": }',
        list=[1],
        old={"$schema": "http://json-schema.org/draft-07/schema#"},
        wrong={"minLength": -1, "properties": {"a": 5}},
        pattern={"properties": {"p": {"pattern": "("}}},
        lookaround={"properties": {"p": {"pattern": "(?=a)"}}},
        refs={
            "properties": {
                "far": {"$ref": "https://example.org/x.json"},
                "gone": {"$ref": "gone.json"},
                "nowhere": {"$ref": "#/$defs/q"},
                "deep": {"allOf": [{"$ref": "shared/money.json#/$defs/q/0"}]},
            }
        },
        anchor={"$ref": "#name"},
        shared__money={"type": "integer"},
        typo={"properties": {"a": {"type": "objekt"}}},
        connect=True,
        note=True,
    )

    assert problems == [
        "broken.json: is not JSON: unexpected character, expected a JSON value "
        "at line 2 column 11",
        "list.json: is not a schema: expected an object, true or false",
        "old.json: #/$schema: is for another draft, expected "
        "https://json-schema.org/draft/2020-12/schema",
        'wrong.json: #/properties/a: it is not of types "boolean", "object"',
        "wrong.json: #/minLength: it is less than the minimum of 0",
        'pattern.json: #/properties/p/pattern: it is not a "regex"',
        "lookaround.json: #/properties/p/pattern: is not a pattern that matches in "
        "linear time: it must have no look-around, no back-references and no huge repetitions",
        "refs.json: #/properties/far/$ref: 'https://example.org/x.json' is outside "
        "the folder; bridge fetches no schemas",
        "refs.json: #/properties/gone/$ref: 'gone.json' names no file in the folder",
        "refs.json: #/properties/nowhere/$ref: '#/$defs/q' points to nothing",
        "refs.json: #/properties/deep/allOf/0/$ref: 'shared/money.json#/$defs/q/0' "
        "points to nothing",
        "anchor.json: Anchor 'name' does not exist",
        "typo.json: #/properties/a/type: must be array, boolean, integer, null, number, "
        "object or string, or a list of them",
        "connect.json: does not name an event: the name is the reserved name 'connect'",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a%.json", "write it as %25"),
        ("a%zz.json", "write it as %25"),
        ("%ff.json", "not UTF-8"),
        (".json", "is empty"),
        ("%0A.json", "control character"),
        ("x" * 129 + ".json", "129 characters"),
    ],
)
def test_a_file_that_names_no_event_is_a_problem(name: str, words: str) -> None:
    """The schema would never be used, and its author would not notice."""
    problems = compile_schemas({name: b"true"}, refuses_unknown=False)

    assert isinstance(problems, list)
    (problem,) = problems
    assert problem.startswith(f"{name}: ")
    assert words in problem


def test_a_schema_without_a_bound_is_a_problem_of_its_file() -> None:
    """`test_schema_cost.py` has all kinds of them."""
    assert compiled(a={"not": {"$ref": "#"}}, b={"items": {"$ref": "#"}}) == [
        "a.json: refers to itself without a step into the data"
    ]


def test_a_file_that_is_nested_too_deep_is_a_problem() -> None:
    """Functions that call themselves would raise a RecursionError."""
    file = b'{"const":' * 900 + b"1" + b"}" * 900

    assert compile_schemas({"a.json": file}, refuses_unknown=False) == [
        "a.json: has more than 200 nested arrays and objects"
    ]


def test_two_files_for_one_event_are_a_problem() -> None:
    """Their order would decide which one is used."""
    files = {"a.json": b"true", "%61.json": b"false"}

    assert compile_schemas(files, refuses_unknown=False) == [
        "%61.json: is for the same event as a.json"
    ]


def test_a_request_from_a_page_has_a_schema_of_its_own() -> None:
    """A message and a request of the same name have different data."""
    found = compiled(
        **{
            "job": {"type": "string"},
            "page/job": {"$ref": "../shared/id.json"},
            "shared/id": {"type": "integer"},
        }
    )

    assert isinstance(found, EventSchemas)
    page = found.find_for_page("job")
    assert page is not None
    assert page.violation(17, size_bytes=2) is None
    assert page.violation("x", size_bytes=3) is not None
    assert accepts(found, "job", "x")
    assert found.find_for_page("shared/id") is None
    assert compiled(**{"page/ack": True}) == [
        "page/ack.json: does not name an event: the name is the reserved name 'ack'"
    ]


def test_data_of_a_page_has_a_small_budget() -> None:
    """A page may send 50 requests a second, and nothing else happens during a check."""
    slow = {"items": {"pattern": "[ab]*a[ab]{100}"}}
    found = compiled(**{"job": slow, "page/job": slow})

    assert isinstance(found, EventSchemas)
    page, other = found.find_for_page("job"), found.find("job")
    assert page is not None
    assert other is not None
    data = ["b" * 1000] * 16
    assert other.violation(data, size_bytes=16_000) is not None
    refused = page.violation(data, size_bytes=16_000)
    assert refused is not None
    assert refused.text == "data is too large to check it by page/job.json"
    limited = found.limited(1 << 10, 1 << 14)
    assert [schema.file for schema in limited] == ["page/job.json"]


def test_schemas_refer_to_each_other_by_path_and_by_id() -> None:
    """A definition that several events share is written once."""
    found = compiled(
        note={"properties": {"sum": {"$ref": "shared/money.json#/$defs/sum"}}},
        shared__money={"$defs": {"sum": {"$ref": "cents.json"}}},
        shared__cents={"type": "integer"},
        by_id={"$id": "https://example.org/a", "$ref": "b"},
        b={"$id": "https://example.org/b", "$anchor": "here", "type": "null"},
        meta={"$ref": "https://json-schema.org/draft/2020-12/schema"},
    )

    assert isinstance(found, EventSchemas)
    assert set(found.schemas) == {"note", "by_id", "b", "meta"}
    assert accepts(found, "note", {"sum": 5})
    assert not accepts(found, "note", {"sum": "5"})
    assert not accepts(found, "by_id", 1)
    assert not accepts(found, "meta", {"type": 5})


def test_only_bad_references_are_reported_among_good_ones() -> None:
    """Valid references go through lists and escaped names."""
    problems = compiled(
        note={
            "$defs": {"a/b": {"allOf": [True, {"type": "integer"}]}},
            "allOf": [
                {"$ref": "#/$defs/a~1b/allOf/1"},
                {"$ref": "#/$defs/a~1b/allOf/2"},
                {"items": {"$ref": "#"}},
                {"$ref": "shared/broken.json"},
            ],
            "properties": {"$ref": {"type": "string"}},
        },
        shared__broken=b"",
    )

    assert isinstance(problems, list)
    assert problems[0] == (
        "note.json: #/allOf/1/$ref: '#/$defs/a~1b/allOf/2' points to nothing"
    )
    assert len(problems) == 2


def test_a_problem_of_a_shared_file_is_reported_once() -> None:
    """The files that refer to it are correct."""
    problems = compiled(
        note={"$ref": "shared/money.json"},
        other={"$ref": "shared/money.json#/$defs/x"},
        shared__money={"type": "integre"},
    )

    assert isinstance(problems, list)
    assert [problem.partition(":")[0] for problem in problems] == ["shared/money.json"]


@pytest.fixture
def web_server() -> Iterator[tuple[str, list[str]]]:
    """Serve a schema, and record the requests."""
    requested: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *_: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requested
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef", "$schema"])
def test_nothing_is_ever_fetched(
    web_server: tuple[str, list[str]], keyword: str
) -> None:
    """A schema may come from a foreign repository, and the bridge has access to the network."""
    url, requested = web_server

    problems = compiled(note={"properties": {"a": {keyword: f"{url}/x.json"}}})
    also = compiled(note={"$id": f"{url}/y.json", keyword: "x.json"})

    assert isinstance(problems, list) or keyword == "$schema"
    assert isinstance(also, list)
    assert requested == []
