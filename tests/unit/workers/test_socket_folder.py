"""The folder of the workers' sockets."""

import tempfile
from pathlib import Path

import pytest

from bridge.workers.supervisor import socket_folder


@pytest.fixture
def no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `tempfile` find no writable folder, as in a read-only file system."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))


@pytest.mark.usefixtures("no_temporary_folder")
def test_workers_need_no_writable_temporary_folder(tmp_path: Path) -> None:
    """A hardened container has a read-only file system, and only /dev/shm in memory."""
    with socket_folder(str(tmp_path)) as folder:
        assert Path(folder).parent == tmp_path
        assert Path(folder).stat().st_mode & 0o777 == 0o700  # for this user only

    assert not Path(folder).exists()


@pytest.mark.usefixtures("no_temporary_folder")
def test_without_any_writable_folder_the_error_names_the_variable(
    tmp_path: Path,
) -> None:
    """The error of the operating system does not say what the folder is for."""
    with pytest.raises(
        OSError, match=r"^TMPDIR: the sockets of the workers need"
    ) as it:
        socket_folder(str(tmp_path / "also-missing"))

    assert "also-missing is not writable either" in str(it.value)
