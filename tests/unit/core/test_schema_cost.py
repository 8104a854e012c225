"""No schema and no data make a check run for long."""

from time import thread_time

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core.event_schemas import CompiledSchema, EventSchemas, Violation
from bridge.core.schema_compiler import compile_schemas
from bridge.core.schema_cost import BUDGET_STEPS, COST_MAX_STEPS
from tests.conftest import SLOW_FACTOR

# The budget is about a second; this is for a slow machine that does other things, too.
LIMIT_S = 5.0 * SLOW_FACTOR
HERE = {"$ref": "#"}
# The first of these took 19 s and 2.6 GB for the data below, nested 15 times.
FORMULA = {
    "oneOf": [
        {
            "properties": {"kind": {"const": kind}, "of": HERE},
            "required": ["kind", "of"],
        }
        for kind in ("and", "not")
    ]
    + [
        {
            "properties": {"kind": {"const": "leaf"}, "value": {"type": "string"}},
            "required": ["kind", "value"],
        }
    ]
}
MUTUAL = {
    "$ref": "#/$defs/a",
    "$defs": {
        "a": {
            "anyOf": [{"properties": {"of": {"$ref": f"#/$defs/{x}"}}} for x in "ab"]
        },
        "b": {
            "allOf": [{"properties": {"of": {"$ref": f"#/$defs/{x}"}}} for x in "ab"]
        },
    },
}
RECURSIVE = {
    "formula": FORMULA,
    "mutual": MUTUAL,
    "all": {"allOf": [{"properties": {"of": HERE}}] * 2, "type": "object"},
    "not": {"not": {"anyOf": [{"not": {"properties": {"of": HERE}}}] * 2}},
    "if": {
        "if": {"properties": {"of": HERE}},
        "then": {"properties": {"of": HERE}, "required": ["kind"]},
        "else": False,
    },
    "pattern": {
        "patternProperties": {"^o": HERE, "f$": HERE},
        "properties": {"of": HERE},
        "type": "object",
    },
    "unevaluated": {
        "anyOf": [{"properties": {"of": HERE}}, {"properties": {"kind": True}}],
        "unevaluatedProperties": HERE,
        "type": "object",
    },
    "dynamic": {
        "$dynamicAnchor": "node",
        "oneOf": [{"properties": {"of": {"$dynamicRef": "#node"}}}] * 2,
    },
}


def compiled(schema: object) -> CompiledSchema | list[str]:
    found = compile_schemas({"e.json": orjson.dumps(schema)}, refuses_unknown=False)
    if not isinstance(found, EventSchemas):
        return found
    event = found.find("e")
    assert isinstance(event, CompiledSchema)
    return event


def accepted(schema: object) -> CompiledSchema:
    found = compiled(schema)
    assert isinstance(found, CompiledSchema), found
    return found


def violation(schema: CompiledSchema, data: object) -> Violation | None:
    """Check `data` and require that this takes no longer than the limit."""
    body = orjson.dumps(data)
    data = orjson.loads(body)  # the validator remembers objects, and none occurs twice
    began_s = thread_time()
    found = schema.violation(data, size_bytes=len(body))
    assert thread_time() - began_s < LIMIT_S
    return found


def nested(depth: int, leaf: object, kind: str = "not") -> object:
    for _ in range(depth):
        leaf = {"kind": kind, "of": leaf}
    return leaf


# --- recursion ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECURSIVE)
@pytest.mark.parametrize("depth", [1, 13, 60, 120])
def test_nested_data_takes_no_exponential_time(name: str, depth: int) -> None:
    """276 bytes blocked all users for 3.4 s, and 400 ended the process."""
    schema = accepted(RECURSIVE[name])

    leaves: list[object] = [{"kind": "leaf", "of": 1}, 1, {}, []]
    for leaf in leaves:
        violation(schema, nested(depth, leaf))


def test_a_recursive_union_still_decides() -> None:
    """Refusing all such schemas would also be a bound."""
    schema = accepted(FORMULA)

    assert violation(schema, nested(40, {"kind": "leaf", "value": "x"})) is None
    assert violation(schema, nested(40, {"kind": "leaf", "value": 1})) == Violation(
        "", "data breaks e.json; it is too recursive to find the place"
    )


def test_data_that_recurs_in_one_way_has_a_place() -> None:
    """Trees are common, and searching them is cheap: a node is reached only once."""
    schema = accepted(
        {
            "properties": {
                "left": HERE,
                "right": HERE,
                "list": {"items": HERE},
                "text": {"type": "string"},
            }
        }
    )

    found = violation(schema, {"left": {"list": [{"right": {"text": 1}}]}})

    assert found is not None
    assert found.pointer == "/left/list/0/right/text"


@pytest.mark.parametrize(
    "schema",
    [
        HERE,
        {"allOf": [{"not": HERE}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
        {"$dynamicAnchor": "a", "if": {"$dynamicRef": "#a"}},
        {"$anchor": "a", "dependentSchemas": {"x": {"$ref": "#a"}}},
        {"$id": "https://x.invalid/a", "oneOf": [{"$ref": "a"}]},
        {"allOf": [{"not": {"$ref": "#/allOf/0"}}]},
    ],
)
def test_a_schema_that_only_leads_back_to_itself_is_refused(schema: object) -> None:
    """It has no rule, and no bound."""
    assert compiled(schema) == ["e.json: refers to itself without a step into the data"]


@pytest.mark.parametrize("end", ["/allOf/7", "/allOf/x", "/not/allOf/0", "anchor"])
def test_a_reference_to_nothing_is_the_compilers_problem(end: str) -> None:
    """The analysis ignores it, and the compiler names its place."""
    problems = compiled({"allOf": [True], "not": False, "$ref": f"#{end}"})

    assert isinstance(problems, list)
    assert end in problems[0]


# --- schemas that are expensive by themselves ------------------------------------------------


def doubling(count: int, keyword: str) -> object:
    """Return a schema that leads to its last definition in ``2 ** count`` ways."""
    ways = {
        f"d{number}": {keyword: [{"$ref": f"#/$defs/d{number + 1}"}] * 2}
        for number in range(count)
    }
    last = {f"d{count}": {"type": "string"}}
    return {"$ref": "#/$defs/d0", "$defs": ways | last}


def clique(count: int) -> object:
    return {
        "$ref": "#/$defs/d0",
        "$defs": {
            f"d{one}": {
                "oneOf": [
                    {"properties": {"of": {"$ref": f"#/$defs/d{other}"}}}
                    for other in range(count)
                ]
            }
            for one in range(count)
        },
    }


def unevaluated(count: int, keyword: str) -> object:
    schema: object = {"properties": {"y": True}, "prefixItems": [True]}
    for _ in range(count):
        schema = {"anyOf": [schema, {"properties": {"x": True}}], keyword: False}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        doubling(30, "anyOf"),
        doubling(30, "oneOf"),
        doubling(30, "allOf"),
        doubling(5000, "allOf"),
        clique(12),
        unevaluated(12, "unevaluatedProperties"),
        unevaluated(12, "unevaluatedItems"),
        {"items": {"enum": [[number] for number in range(40_000)]}},
        {"oneOf": [{"pattern": "[ab]*a[ab]{5000}"}] * 9},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_a_schema_without_an_acceptable_bound_is_refused(schema: object) -> None:
    """One value, even a number, would be checked for seconds or hours."""
    problems = compiled(schema)

    assert isinstance(problems, list)
    assert "too many paths" in problems[0] or "allowed are" in problems[0]


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        (doubling(11, "oneOf"), [1] * 1000),
        (clique(4), nested(100, {"of": 1})),
        (unevaluated(3, "unevaluatedProperties"), {"x": 1, "y": 2}),
        ({"items": {"enum": [{"n": n} for n in range(5000)]}}, [{"n": 4999}] * 20_000),
        ({"pattern": "[ab]*a[ab]{1000}c"}, "abbab" * 50_000),
        ({"items": {"multipleOf": 5e-324}}, [1e308] * 60_000),
        ({"uniqueItems": True, "items": HERE}, nested(0, [[[1, [2]]] * 40_000])),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_expensive_schema_has_a_limit_for_its_data(
    schema: object, data: object
) -> None:
    """A check within the budget takes a second at most; other data is refused at once."""
    violation(accepted(schema), data)


def test_data_beyond_the_budget_is_refused_with_a_reason() -> None:
    """The reader of the dead letter can simplify the schema or send less."""
    schema = accepted({"pattern": "^[ab]*a[ab]{1000}c$"})

    assert violation(schema, "b" * 100_000) == Violation(
        "", "data is too large to check it by e.json"
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{n}": {"type": "string"} for n in range(500)}},
        {"oneOf": [{"properties": {"kind": {"const": n}}} for n in range(100)]},
        {
            "properties": {
                "id": {"pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
            }
        },
        {
            "allOf": [{"$ref": "#/$defs/a"}],
            "$defs": {"a": {}},
            "unevaluatedProperties": False,
        },
        {"$ref": "https://json-schema.org/draft/2020-12/schema", "maxProperties": 5},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_an_ordinary_schema_checks_data_of_any_usual_size(schema: object) -> None:
    """Its limit is above the default of BRIDGE_MAX_MESSAGE_BYTES or counts values only."""
    cost = accepted(schema).cost

    assert cost.steps <= 2100
    assert cost.pattern_steps * (1 << 18) < BUDGET_STEPS


def test_small_data_is_within_the_budget_of_every_accepted_schema() -> None:
    """Otherwise a schema could be accepted and refuse everything."""
    assert BUDGET_STEPS // COST_MAX_STEPS == 1024


# --- any schema, any data --------------------------------------------------------------------

NAMES = "abc"
references = st.sampled_from([HERE, *({"$ref": f"#/$defs/{name}"} for name in NAMES)])
leaves = st.sampled_from(
    [
        True,
        False,
        {"type": "string"},
        {"required": ["a"]},
        {"minItems": 1},
        {"const": 1},
    ]
)


def grown(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    several = st.lists(inner, min_size=1, max_size=3)
    by_name = st.dictionaries(st.sampled_from(NAMES), inner, min_size=1)
    return st.fixed_dictionaries(
        {},
        optional={
            "allOf": several,
            "anyOf": several,
            "oneOf": several,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "dependentSchemas": by_name,
            "properties": by_name,
            "patternProperties": by_name,
            "additionalProperties": inner,
            "propertyNames": inner,
            "unevaluatedProperties": inner,
            "prefixItems": several,
            "items": inner,
            "contains": inner,
            "unevaluatedItems": inner,
            "uniqueItems": st.booleans(),
        },
    )


schemas = st.recursive(references | leaves, grown, max_leaves=12)
documents = st.builds(
    lambda top, defs: {"allOf": [top], "$defs": defs},
    schemas,
    st.fixed_dictionaries(dict.fromkeys(NAMES, schemas)),
)


@st.composite
def bodies(draw: st.DrawFn) -> object:
    """Draw data that repeats a few containers to a depth of up to 100."""
    steps = draw(
        st.lists(st.sampled_from([*NAMES, "list", "both"]), min_size=1, max_size=4)
    )
    data: object = draw(st.sampled_from([1, "x", None, [], {}]))
    for _ in range(draw(st.sampled_from([1, 5, 25]))):
        for step in steps:
            if step == "list":
                data = [data, 1]
            elif step == "both":
                data = dict.fromkeys(NAMES, data) if len(str(data)) < 500 else data
            else:
                data = {step: data}
    return data


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=documents, data=bodies())
def test_any_accepted_schema_checks_any_data_in_bounded_time(
    schema: object, data: object
) -> None:
    """The bound is that of the analysis, with room for a slow machine."""
    found = compiled(schema)
    if isinstance(found, list):
        return  # refused

    violation(found, data)
