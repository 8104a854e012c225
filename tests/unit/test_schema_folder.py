"""Reading the folder of schemas."""

import os
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.schema_folder import load_schemas


def problems_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_schemas(str(folder), unknown="pass")
    return caught.value.problems


def test_without_a_folder_no_data_is_checked() -> None:
    """This is the default, which costs nothing."""
    assert load_schemas(None, unknown="pass") is None


def test_files_are_events_and_other_files_are_skipped(tmp_path: Path) -> None:
    """The folder may be a repository, or a ConfigMap with its hidden links."""
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


def test_unreadable_files_are_reported_with_the_other_problems(tmp_path: Path) -> None:
    """All problems are reported together, and a pipe does not block."""
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nothing")
    (tmp_path / "large.json").write_bytes(b" " * (1 << 20) + b"{}")
    os.mkfifo(tmp_path / "pipe.json")

    assert problems_of(tmp_path) == (
        f"BRIDGE_SCHEMAS: {tmp_path}: dangling.json: cannot be read: "
        "No such file or directory",
        f"BRIDGE_SCHEMAS: {tmp_path}: large.json: is larger than 1048576 bytes",
        f"BRIDGE_SCHEMAS: {tmp_path}: pipe.json: is not a file",
        f"BRIDGE_SCHEMAS: {tmp_path}: bad.json: is not JSON: "
        "unexpected end of data at line 1 column 2",
    )


def test_a_name_that_is_not_utf_8_is_a_problem(tmp_path: Path) -> None:
    """It can be part of a checkout or an archive, and names no event."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")).write_text("true")

    (problem,) = problems_of(tmp_path)

    assert problem == f"BRIDGE_SCHEMAS: {tmp_path}: \\xff.json: the name is not UTF-8"


def test_a_missing_folder_is_a_problem(tmp_path: Path) -> None:
    """An empty folder is valid: schemas may be added later."""
    (problem,) = problems_of(tmp_path / "gone")
    assert problem.endswith("gone: cannot be read: No such file or directory")

    assert load_schemas(str(tmp_path), unknown="pass") is not None
