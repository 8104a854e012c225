"""Processes of the system, to check that a test leaves none behind."""

from pathlib import Path


def family_of(pid: int) -> list[int]:
    """Return `pid` and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    family = [pid]
    for parent_pid in family:
        family += [child for child, parent in parents.items() if parent == parent_pid]
    return family


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def is_frozen(pid: int) -> bool:
    """Return whether every thread is stopped; SIGSTOP reaches running threads with a delay."""
    states = {
        (task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    return states == {"T"}
