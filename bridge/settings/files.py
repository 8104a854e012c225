"""Reads files that settings name, which may be anything, also at a reload."""

from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Final

_FILE_MAX_BYTES: Final = 1 << 20


def read_file(path: Path | str) -> bytes | str:
    """
    Return the content of a file, or why there is none, as the end of a sentence.

    A pipe could block forever, and a device might never end.
    """
    try:
        found = Path(path).stat()
        if not (S_ISREG(found.st_mode) or S_ISDIR(found.st_mode)):
            return "is not a file"
        if found.st_size > _FILE_MAX_BYTES:
            return f"is larger than {_FILE_MAX_BYTES} bytes"
        return Path(path).read_bytes()
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
