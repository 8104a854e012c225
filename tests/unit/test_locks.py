"""The lock files: exact versions, without addresses, with hashes for the runtime set."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = re.compile(r"^([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    """Return the version of each package in a lock file, by its normalized name."""
    found = PACKAGE.findall((ROOT / name).read_text("utf-8"))
    return {re.sub(r"[-_.]+", "-", package).lower(): each for package, each in found}


def test_every_package_of_the_runtime_set_has_hashes() -> None:
    """Pip refuses a file that was replaced on the index, or on a mirror."""
    text = (ROOT / "requirements-run.lock").read_text("utf-8")
    entries = re.split(r"\n(?=\S)", text.rstrip())[1:]  # the first line is a comment

    assert len(entries) == len(locked("requirements-run.lock"))
    for entry in entries:
        assert re.fullmatch(
            r"[^\s=]+==[^\s=]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+", entry
        ), entry.splitlines()[0]


def test_the_tests_run_with_the_versions_of_the_runtime_set() -> None:
    """Otherwise other versions would be tested than are delivered."""
    assert (
        locked("requirements-run.lock").items() <= locked("requirements.lock").items()
    )


def test_lock_files_have_no_addresses() -> None:
    """They must work with every index."""
    for name in ("requirements-run.lock", "requirements.lock"):
        assert "://" not in (ROOT / name).read_text("utf-8")


def test_the_image_and_the_instructions_require_the_hashes() -> None:
    """A line without a hash must not pass."""
    for name in ("compose/Dockerfile", "docs/getting-started.md"):
        assert "install --require-hashes -r requirements-run.lock" in (
            ROOT / name
        ).read_text("utf-8")
