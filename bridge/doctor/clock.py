"""Whether a clock and ours agree."""

from typing import Final

from bridge.doctor.results import Finding, note, ok, unknown, wrong

# A Date header tells whole seconds, and the way takes its time.
_CLOCK_NOTE_S: Final = 3.0


def clock_finding(subject: str, ahead_s: float | None, *, limit_s: float) -> Finding:
    """Compare a clock with ours; more than `limit_s` apart is wrong."""
    if ahead_s is None:
        return unknown(subject, "its clock is not known")
    text = f"its clock and ours are {abs(ahead_s):.1f} s apart"
    if abs(ahead_s) < _CLOCK_NOTE_S:
        return ok(subject, "its clock and ours agree")
    mend = "timedatectl set-ntp true   # on the machine whose clock is wrong"
    if abs(ahead_s) <= limit_s:
        return note(subject, text, mend=mend)
    return wrong(subject, text, mend=mend)
