"""The reason phrases of HTTP."""

from http import HTTPStatus
from typing import Final

# Before 3.13, Python has the names of older RFCs. What bridge answers, and the committed OpenAPI
# document, must not depend on the version.
_RFC_9110: Final = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


def reason_phrase(status: int) -> str:
    """
    Return the name that RFC 9110 gives to a status.

    Raises:
        ValueError: If Python does not know the status.

    """
    return _RFC_9110.get(status) or HTTPStatus(status).phrase
