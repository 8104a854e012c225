"""Schemas and the data that they check, against the library jsonschema."""

from typing import Final

import jsonschema
import orjson

from bridge.core.event_schemas import CompiledSchema
from bridge.core.schema_compiler import compile_schemas, parse_file_name
from bridge.core.schema_cost import BUDGET_STEPS, COST_MAX_STEPS
from tests.fuzz.harness import Choices

MODULES: Final = (
    "bridge.core.schema_cost",
    "bridge.core.schema_compiler",
    "bridge.core.event_schemas",
)
SEEDS: Final = (
    bytes(range(200)),
    bytes(range(200, 0, -1)),
    bytes(n * 37 % 256 for n in range(300)),
    bytes(n * n % 251 for n in range(300)),
    b'\xff{"$ref":"#"}\n[[1]]',
    b'\xff{"oneOf":[{"properties":{"a":{"$ref":"#"}}},{"not":{"$ref":"#"}}]}\n{"a":{"a":1}}',
    b'\xff{"$id":"x","$defs":{"a":{"$anchor":"b"}},"$ref":"#b"}\n1',
    b'\xff{"pattern":"^(a+)+$","format":"email"}\n"aaaa!"',
    b"\xff{\n",
)
_NAMES: Final = ("a", "b", "c")
_ONE: Final = (
    "not", "if", "then", "else", "items", "contains", "additionalProperties",
    "propertyNames", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
_MANY: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_REFERENCES: Final = ("#", "#/$defs/a", "#/$defs/b", "#/$defs/c")
_TYPES: Final = ("object", "array", "string", "number", "null", "boolean")


def fuzz_one(data: bytes) -> None:
    """Every schema is refused or has a bound; both libraries decide the same."""
    if data[:1] == b"\xff":
        content, _, body = data[1:].partition(b"\n")
        try:
            value: object = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        _check(content, value, can_compare=False)
        return
    choices = Choices(data)
    schema = _schema(choices, 4)
    if isinstance(schema, dict):
        schema["$defs"] = {name: _schema(choices, 3) for name in _NAMES}
    value = _value(choices, 5)
    # The other library takes exponential time for some recursive schemas.
    can_compare = "$ref" not in repr(schema)
    _check(orjson.dumps(schema), value, can_compare=can_compare)


def _check(content: bytes, value: object, *, can_compare: bool) -> None:
    _check_name(content)
    schemas = compile_schemas({"a.json": content}, refuses_unknown=True)
    if isinstance(schemas, list):
        for problem in schemas:
            assert problem.startswith("a.json: ")
            problem.encode()
        return
    schema = schemas.find("a")
    assert isinstance(schema, CompiledSchema)
    assert 0 < schema.cost.steps <= COST_MAX_STEPS
    assert schema.certain_bytes * schema.cost.steps <= 2 * BUDGET_STEPS
    size = len(orjson.dumps(value))
    violation = schema.violation(value, size_bytes=size)
    if violation is not None:
        violation.text.encode()
        assert len(violation.text) < 2000
    if can_compare and size <= schema.certain_bytes:
        validator = jsonschema.Draft202012Validator(orjson.loads(content))
        assert validator.is_valid(value) == (violation is None)


def _check_name(content: bytes) -> None:
    try:
        parse_file_name(content[:100].decode(errors="replace") + ".json")
    except ValueError:
        return


def _schema(choices: Choices, depth: int) -> object:
    if depth == 0:
        return choices.one_of((True, False, {}, {"type": "object"}))
    schema: dict[str, object] = {}
    for _ in range(choices.number(4)):
        kind = choices.number(8)
        if kind == 0:
            schema["$ref"] = choices.one_of(_REFERENCES)
        elif kind in {1, 2}:
            schema[choices.one_of(_ONE)] = _schema(choices, depth - 1)
        elif kind in {3, 4}:
            children = [
                _schema(choices, depth - 1) for _ in range(1 + choices.number(3))
            ]
            schema[choices.one_of(_MANY)] = children
        elif kind == 5:
            names = [choices.one_of(_NAMES) for _ in range(1 + choices.number(3))]
            schema["properties"] = {name: _schema(choices, depth - 1) for name in names}
        elif kind == 6:
            schema["type"] = choices.one_of(_TYPES)
        else:
            schema[
                choices.one_of(
                    ("minItems", "maxItems", "minProperties", "maxProperties")
                )
            ] = choices.number(4)
            if choices.number(2):
                schema["required"] = [choices.one_of(_NAMES)]
    return schema


def _value(choices: Choices, depth: int) -> object:
    kind = choices.number(7)
    if depth and kind in {1, 2, 3}:
        return {
            choices.one_of(_NAMES): _value(choices, depth - 1)
            for _ in range(choices.number(4))
        }
    if depth and kind == 4:
        return [_value(choices, depth - 1) for _ in range(choices.number(4))]
    return choices.one_of((None, True, 0, 1, "a", "", -1.5))
