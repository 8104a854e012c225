"""What one look found out."""

from dataclasses import dataclass
from enum import StrEnum

from bridge.enums import ExitCode


class Verdict(StrEnum):
    """How a thing is. Only `WRONG` changes the exit code."""

    OK = "ok"
    NOTE = "note"
    UNKNOWN = "unknown"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One line of the doctor.

    Attributes:
        subject: What was looked at.
        verdict: How it is.
        text: Why, in words.
        mend: The command or the setting that mends it; empty if there is nothing to mend.
        code: What a wrong one means for the exit status.

    """

    subject: str
    verdict: Verdict
    text: str
    mend: str = ""
    code: int = ExitCode.FAILED

    @property
    def exit_code(self) -> int:
        """What it means for the exit status of the command."""
        return self.code if self.verdict is Verdict.WRONG else ExitCode.DONE


def ok(subject: str, text: str) -> Finding:
    """All is well."""
    return Finding(subject, Verdict.OK, text)


def note(subject: str, text: str, *, mend: str = "") -> Finding:
    """It works, and somebody should know something."""
    return Finding(subject, Verdict.NOTE, text, mend)


def unknown(subject: str, text: str, *, mend: str = "") -> Finding:
    """It could not be looked at; `mend` says how it could."""
    return Finding(subject, Verdict.UNKNOWN, text, mend)


def wrong(
    subject: str, text: str, *, mend: str = "", code: int = ExitCode.FAILED
) -> Finding:
    """It does not work, or will not."""
    return Finding(subject, Verdict.WRONG, text, mend, code)
