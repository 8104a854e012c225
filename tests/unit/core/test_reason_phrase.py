"""The names of statuses."""

from bridge.core.reason_phrase import reason_phrase


def test_the_names_do_not_depend_on_the_version_of_python() -> None:
    """Python 3.11 has names of older RFCs, Python 3.13 those of RFC 9110."""
    assert reason_phrase(413) == "Content Too Large"
    assert reason_phrase(422) == "Unprocessable Content"
    assert reason_phrase(404) == "Not Found"
