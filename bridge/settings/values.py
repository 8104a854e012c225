"""Types of values, as an operator writes them: durations, sizes, lists."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, SecretStr

from bridge.core.broker_names import SHARDS_MAX
from bridge.core.durations import parse_duration_s, render_duration

_SIZE: Final = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|kB|MB|GB)?", re.IGNORECASE)
_BYTES: Final = {
    "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
}  # fmt: skip


def parse_size_bytes(value: object) -> int:
    """
    Parse a size: a number of bytes, or a number with a unit: ``64KiB 1MiB``.

    Raises:
        ValueError: If `value` is neither.

    """
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        message = f"{value!r} is not a size, expected for example 65536, 64KiB or 1MiB"
        raise ValueError(message)
    return int(match[1]) * _BYTES[(match[2] or "b").lower()]


def render_size(size_bytes: int) -> str:
    """Render a size for `parse_size_bytes`, in the largest unit without a fraction."""
    for unit in ("GiB", "MiB", "KiB"):
        count, rest = divmod(size_bytes, _BYTES[unit.lower()])
        if count and not rest:
            return f"{count}{unit}"
    return str(size_bytes)


def render_value(value: object, metadata: Iterable[object]) -> str:
    """
    Render the value of a setting as an operator can put it into the environment.

    Args:
        value: The value in the settings.
        metadata: The metadata of its field, which marks durations and sizes.

    """
    if isinstance(value, dict):
        value = [
            f"{name}={render_duration(after_s)}" for name, after_s in value.items()
        ]
    readers = {note.func for note in metadata if isinstance(note, BeforeValidator)}
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list() | tuple():
            plain = metadata if _durations not in readers else [_A_DURATION]
            return ",".join(render_value(part, plain) for part in value)
        case int() | float() if parse_duration_s in readers:
            return render_duration(value)
        case int() if parse_size_bytes in readers:
            return render_size(value)
        case _:
            return str(value)


def _split(value: object) -> object:
    """Accept `a, b` of the environment and `["a", "b"]` of TOML."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _durations(value: object) -> object:
    parts = _split(value)
    if isinstance(parts, list | tuple):
        return tuple(parse_duration_s(part) for part in parts)
    return (parse_duration_s(parts),)


def _durations_by_name(value: object) -> object:
    """Accept `a=45s,b=10s` of the environment, and a table of TOML."""
    if isinstance(value, Mapping):
        return {name: parse_duration_s(duration) for name, duration in value.items()}
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, str(value).split(","))):
        name, equals, duration = map(str.strip, part.rpartition("="))
        if not equals:
            message = f"{part!r} is not like NAME=45s"
            raise ValueError(message)
        if name in found:
            message = f"names {name!r} twice"
            raise ValueError(message)
        found[name] = parse_duration_s(duration)
    return found


def _explain_kubernetes(value: object) -> object:
    if str(value).startswith("tcp://"):
        message = (
            f"{value} is set by Kubernetes for a Service of this name: set "
            "`enableServiceLinks: false` in the pod, or the port itself"
        )
        raise ValueError(message)
    return value


_A_DURATION: Final = BeforeValidator(parse_duration_s)
Duration = Annotated[float, _A_DURATION, Field(gt=0)]
Size = Annotated[int, BeforeValidator(parse_size_bytes), Field(gt=0)]
Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
WholeSeconds = Annotated[int, BeforeValidator(parse_duration_s), Field(ge=1)]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]
Durations = Annotated[tuple[float, ...], BeforeValidator(_durations)]
DurationsByName = Annotated[
    dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_durations_by_name)
]
Count = Annotated[int, Field(ge=1)]
ShardCount = Annotated[int, Field(ge=1, le=SHARDS_MAX)]
# The name of an exchange has at most 127 bytes; the longest one of bridge is
# `<namespace>.shards.9999.gate`.
Namespace = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,3}$", max_length=110),
]
Port = Annotated[int, BeforeValidator(_explain_kubernetes), Field(ge=0, le=65535)]
