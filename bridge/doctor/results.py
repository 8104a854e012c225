"""The result of one check."""

from dataclasses import dataclass
from enum import StrEnum

from bridge.enums import ExitCode


class CheckStatus(StrEnum):
    """The outcome of a check. Only `FAIL` changes the exit status of the command."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """
    One line of `bridge check`.

    Attributes:
        subject: The thing that was checked.
        status: The outcome.
        text: The reason, in words. It holds no secret.
        fix: The command or setting that resolves the problem; empty without a problem.
        exit_code: The exit status that this result alone would give the command.

    """

    subject: str
    status: CheckStatus
    text: str
    fix: str = ""
    exit_code: int = ExitCode.DONE


def ok(subject: str, text: str) -> CheckResult:
    """Report a check that passed."""
    return CheckResult(subject, CheckStatus.OK, text)


def warn(subject: str, text: str, *, fix: str = "") -> CheckResult:
    """Report something that works, but that an operator should know."""
    return CheckResult(subject, CheckStatus.WARN, text, fix)


def skip(subject: str, text: str, *, fix: str = "") -> CheckResult:
    """Report a check that could not run; `fix` says what would make it possible."""
    return CheckResult(subject, CheckStatus.SKIP, text, fix)


def fail(
    subject: str, text: str, *, fix: str, exit_code: int = ExitCode.FAILED
) -> CheckResult:
    """Report something that does not work now or soon; `fix` names the way out."""
    return CheckResult(subject, CheckStatus.FAIL, text, fix, exit_code)
