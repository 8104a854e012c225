"""The names of settings, and texts of problems that use them."""

import difflib
from collections.abc import Collection
from typing import Final

from pydantic_core import ErrorDetails

ENVIRONMENT_PREFIX: Final = "BRIDGE_"


def environment_name(field_name: str) -> str:
    """Return the environment variable of the setting `field_name`."""
    return ENVIRONMENT_PREFIX + field_name.upper()


def did_you_mean(
    name: str, known: Collection[str], *, prefix: str = ENVIRONMENT_PREFIX
) -> str:
    """
    Return the end of a sentence that suggests the known name nearest to `name`.

    Args:
        name: The unknown name.
        known: The environment variables of all settings.
        prefix: Empty to suggest the name that a TOML file uses.

    Returns:
        An empty string if no known name is near.

    """
    # Compare without the prefix: it would make any two names similar.
    near = difflib.get_close_matches(
        name.upper().removeprefix(ENVIRONMENT_PREFIX),
        sorted(other.removeprefix(ENVIRONMENT_PREFIX) for other in known),
        n=1,
    )
    if not near:
        return ""
    return f", did you mean {prefix + near[0] if prefix else near[0].lower()}?"


def problem_text(error: ErrorDetails, *, known: Collection[str]) -> str:
    """Return the text of a pydantic error with the variable's name and without values."""
    field_name = str(error["loc"][0])
    name = environment_name(field_name)
    if error["type"] == "extra_forbidden":  # only the TOML file can cause this
        near = did_you_mean(field_name, known, prefix="")
        return f"{field_name} in the TOML file: is not a setting{near}"
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return (
            f"{name}: may contain letters, digits, _ and - only; the rule is {pattern}"
        )
    if error["type"] in {"bool_parsing", "bool_type"}:
        return f"{name}: should be true or false"
    if error["type"] in {"int_parsing", "int_from_float"}:
        return f"{name}: should be a whole number"
    text = error["msg"].removeprefix("Value error, ")
    return f"{name}: {text.removeprefix('Input ')}"
