"""Generates the JSON Schemas (2020-12) of `schemas/` from the models."""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

# A line break within a paragraph of a docstring, which has no meaning.
_WRAP: Final = re.compile(r"(?<!\n)\n(?!\n|- )")
_WORD_START: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def schema_body(
    model: type[BaseModel],
    *,
    mode: Literal["validation", "serialization"] = "validation",
) -> dict[str, Any]:
    """
    Return the self-contained JSON Schema of `model`, without `$schema` and `$id`.

    Args:
        model: A model with a docstring.
        mode: Whether the schema describes input or output.

    """
    body = model.model_json_schema(
        by_alias=True, schema_generator=_PlainSchema, mode=mode
    )
    definitions = body.pop("$defs", {})
    inlined: dict[str, Any] = _inline(body, definitions)
    return {
        "title": _WORD_START.sub(" ", schema_name(model)).capitalize(),
        # A generic model with a type argument has no docstring of its own.
        "description": inlined.pop("description", None) or "A part of a list.",
        **inlined,
    }


def schema_name(model: type[BaseModel]) -> str:
    """Return the name of `model`; `Page[Thing]` is called `PageOfThing`."""
    return model.__name__.replace("[", "Of").replace("]", "")


class _PlainSchema(GenerateJsonSchema):
    """Pydantic's generator, without titles of fields, in the order of the model."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002, ANN401 - pydantic's own signature
        """Return false for all fields."""
        return False

    def sort(
        self,
        value: JsonSchemaValue,
        parent_key: str | None = None,  # noqa: ARG002 - pydantic's own signature
    ) -> JsonSchemaValue:
        """Keep the order of the model."""
        return value


def _inline(node: Any, definitions: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a tree of JSON
    """Replace references by definitions, and drop keys without information."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    name = node.get("$ref")
    if isinstance(name, str):
        definition = definitions[name.removeprefix("#/$defs/")]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return _inline({**definition, **beside}, definitions)
    return {
        key: _WRAP.sub(" ", value)
        if key == "description" and isinstance(value, str)
        else value
        if key == "examples"
        else _inline(value, definitions)
        for key, value in node.items()
        # Pydantic writes "default: null" for fields that may be absent, which "required"
        # already expresses. Titles repeat the names of classes.
        if not (key == "default" and value is None)
        and not (key == "title" and isinstance(value, str))
    }
