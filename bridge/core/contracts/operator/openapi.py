"""Generates the OpenAPI 3.1 document of the operator's API from its operations."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from bridge import __version__
from bridge.core.contracts.json_schema import schema_body, schema_name
from bridge.core.contracts.messages import Problem
from bridge.core.contracts.operator.operation import AnyOperation, NoBody
from bridge.core.reason_phrase import reason_phrase

Tree = dict[str, Any]

_DESCRIPTION: Final = """\
The API of a running bridge for operators. The console and the commands use only this API. It is
served on the operator port and requires the operator token (BRIDGE_OPERATOR_TOKEN) in
`Authorization: Bearer` or `X-API-Key`, except for `/health`. Times are Unix times in seconds. Errors are
`application/problem+json` (RFC 9457). Answers may gain more fields."""
_BRACES: Final = re.compile(r"\{(\w+)\}")
# Problems of all operations: a malformed parameter, a missing or wrong token, no
# BRIDGE_OPERATOR_TOKEN in the settings, an unknown host, an invalid value, too many wrong
# tokens.
_SHARED_PROBLEMS: Final = (400, 401, 403, 421, 422, 429)
# Additional problems of operations with a body: too slow, too large, not JSON.
_BODY_PROBLEMS: Final = (408, 413, 415)


def openapi_document(operations: Iterable[AnyOperation]) -> Tree:
    """Return the document for `operations`."""
    paths: Tree = {}
    schemas: Tree = {}
    for operation in operations:
        entry = paths.setdefault(operation.path, {})
        entry[operation.method.lower()] = _operation(operation, schemas)
    schemas["Problem"] = schema_body(Problem)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bridge, for operators",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [
            {
                "url": "http://127.0.0.1:8081",
                "description": "BRIDGE_OPERATOR_HOST, BRIDGE_OPERATOR_PORT",
            }
        ],
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(operation: AnyOperation, schemas: Tree) -> Tree:
    body: type[BaseModel] = operation.body
    described: Tree = {
        "operationId": operation.name,
        "tags": [operation.group],
        "summary": operation.summary,
    }
    parameters = [*_path_parameters(operation), *_query_parameters(operation.query)]
    if parameters:
        described["parameters"] = parameters
    if operation.is_free:
        described["security"] = []
    shared = () if operation.is_free else _SHARED_PROBLEMS
    problems = {*shared, *operation.problems}
    if body is not NoBody:
        schemas[schema_name(body)] = schema_body(body)
        described["requestBody"] = {"required": True, "content": _content(body)}
        problems |= set(_BODY_PROBLEMS)
    answers: Mapping[int, type[BaseModel]] = operation.answers
    for model in answers.values():
        schemas[schema_name(model)] = schema_body(model, mode="serialization")
    described["responses"] = {
        **{
            str(status): _response(status, model, operation.media_type)
            for status, model in answers.items()
        },
        **{
            str(status): _response(status, Problem, "application/problem+json")
            for status in sorted(problems)
        },
    }
    return described


def _path_parameters(operation: AnyOperation) -> list[Tree]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": dict(operation.path_parameters[name]),
        }
        for name in _BRACES.findall(operation.path)
    ]


def _query_parameters(query: type[BaseModel]) -> list[Tree]:
    schema = schema_body(query)
    required = schema.get("required", ())
    parameters = []
    for name, form in schema.get("properties", {}).items():
        described = dict(form)
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "description": described.pop("description"),
                "schema": described,
            }
        )
    return parameters


def _content(model: type[BaseModel], media_type: str = "application/json") -> Tree:
    reference = {"$ref": f"#/components/schemas/{schema_name(model)}"}
    return {media_type: {"schema": reference}}


def _response(status: int, model: type[BaseModel], media_type: str) -> Tree:
    content = _content(model, media_type)
    return {"description": reason_phrase(status), "content": content}
