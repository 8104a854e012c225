"""From a model to the JSON Schema (2020-12) that stands in `schemas/`."""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

# A line break inside a paragraph, which is how docstrings are laid out and no more.
_WRAP: Final = re.compile(r"(?<!\n)\n(?!\n|- )")
_WORD_START: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def schema_body(
    model: type[BaseModel],
    *,
    mode: Literal["validation", "serialization"] = "validation",
) -> dict[str, Any]:
    """
    Return the JSON Schema of `model`, complete in itself, without `$schema` and `$id`.

    Args:
        model: Has a docstring.
        mode: As it is read, or as it is written.

    """
    body = model.model_json_schema(
        by_alias=True, schema_generator=_PlainSchema, mode=mode
    )
    definitions = body.pop("$defs", {})
    inlined: dict[str, Any] = _inline(body, definitions)
    return {
        "title": _WORD_START.sub(" ", schema_name(model)).capitalize(),
        # A generic model that was given its type has no docstring of its own.
        "description": inlined.pop("description", None) or "A part of a list.",
        **inlined,
    }


def schema_name(model: type[BaseModel]) -> str:
    """Return the name of `model`; `Page[Thing]` is called `PageOfThing`."""
    return model.__name__.replace("[", "Of").replace("]", "")


class _PlainSchema(GenerateJsonSchema):
    """Pydantic's generator, without titles that repeat a field's name, in order of writing."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002, ANN401 - pydantic's own signature
        """Say no for all of them."""
        return False

    def sort(
        self,
        value: JsonSchemaValue,
        parent_key: str | None = None,  # noqa: ARG002 - pydantic's own signature
    ) -> JsonSchemaValue:
        """Leave the order as it is: the model's."""
        return value


def _inline(node: Any, definitions: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a tree of JSON
    """Put each definition where it is used, and drop what says nothing."""
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
        # "default: null" is how pydantic says "may be absent", which "required" says;
        # titles repeat the names of classes.
        if not (key == "default" and value is None)
        and not (key == "title" and isinstance(value, str))
    }
