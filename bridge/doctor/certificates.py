"""How long a server's certificate holds."""

from typing import Final

from bridge.doctor.results import Finding, note, ok, wrong

_DAY_S: Final = 86400
_NOTE_DAYS: Final = 30
_WRONG_DAYS: Final = 7


def certificate_finding(
    subject: str, end_s: float, *, now_s: float, mend: str
) -> Finding:
    """Say how long the certificate that ends at `end_s`, in Unix time, holds."""
    days = (end_s - now_s) / _DAY_S
    text = f"ends in {days:.1f} days"
    if days < _WRONG_DAYS:
        return wrong(subject, text, mend=mend)
    if days < _NOTE_DAYS:
        return note(subject, text, mend=mend)
    return ok(subject, text)
