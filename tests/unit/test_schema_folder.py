"""The folder of schemas: what of it is read."""

import os
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.schema_folder import load_schemas


def problems_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_schemas(str(folder), unknown="pass")
    return caught.value.problems


def test_without_a_folder_there_is_nothing_to_check() -> None:
    """The default costs nothing."""
    assert load_schemas(None, unknown="pass") is None


def test_events_are_files_and_what_is_no_schema_is_left_alone(tmp_path: Path) -> None:
    """A folder under version control, or a ConfigMap with its hidden links."""
    hidden = tmp_path / "..2026_01_01"
    hidden.mkdir()
    (hidden / "note.json").write_text("true")
    (tmp_path / "..data").symlink_to(hidden)
    (tmp_path / "note.json").symlink_to(Path("..data") / "note.json")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "money.json").write_text("true")
    (tmp_path / "order%2Fpaid.json").write_text('{"$ref": "shared/money.json"}')
    (tmp_path / "README.md").write_text("# ours")
    (tmp_path / ".note.json.swp").write_text("{")

    schemas = load_schemas(str(tmp_path), unknown="dead")

    assert schemas is not None
    assert set(schemas.schemas) == {"note", "order/paid"}
    assert schemas.refuses_unknown


def test_what_cannot_be_read_is_told_with_the_rest(tmp_path: Path) -> None:
    """All at once, and nothing waits for a pipe."""
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nothing")
    (tmp_path / "large.json").write_bytes(b" " * (1 << 20) + b"{}")
    os.mkfifo(tmp_path / "pipe.json")

    assert problems_of(tmp_path) == (
        f"BRIDGE_SCHEMAS: {tmp_path}: dangling.json: is not a file",
        f"BRIDGE_SCHEMAS: {tmp_path}: large.json: is larger than 1048576 bytes",
        f"BRIDGE_SCHEMAS: {tmp_path}: pipe.json: is not a file",
        f"BRIDGE_SCHEMAS: {tmp_path}: bad.json: is not JSON: "
        "unexpected end of data at line 1 column 2",
    )


def test_a_folder_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    """An empty one is none: the first contract may come tomorrow."""
    (problem,) = problems_of(tmp_path / "gone")
    assert problem.endswith("gone: cannot be read: No such file or directory")

    assert load_schemas(str(tmp_path), unknown="pass") is not None
