"""The remaining lifetime of a server's certificate."""

from typing import Final

from bridge.doctor.results import CheckResult, fail, ok, warn

_DAY_S: Final = 86400
_WARN_DAYS: Final = 30
_FAIL_DAYS: Final = 7


def check_certificate(
    subject: str, end_s: float, *, now_s: float, fix: str
) -> CheckResult:
    """Compare the end of a certificate, in Unix time, with the warning periods."""
    days = (end_s - now_s) / _DAY_S
    text = f"ends in {days:.1f} days" if days > 0 else f"ended {-days:.1f} days ago"
    if days < _FAIL_DAYS:
        return fail(subject, text, fix=fix)
    if days < _WARN_DAYS:
        return warn(subject, text, fix=fix)
    return ok(subject, text)
