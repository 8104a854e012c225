"""The origins that may connect."""

import pytest

from bridge.core.origins import OriginRules

LISTED = OriginRules(allowed=frozenset({"https://app.example"}))
SAME_HOST = OriginRules()


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("https://app.example", True),
        ("http://app.example", False),
        ("https://app.example:8443", False),
        ("https://app.example.evil", False),
        ("https://evil.example", False),
        ("https://app.example/", False),
        ("null", False),
        ("", False),
        ("*", False),
    ],
)
def test_a_list_of_origins_allows_only_these(origin: str, *, is_allowed: bool) -> None:
    """The bridge's own host is refused too, unless it is on the list."""
    found = LISTED.allows(origin, host="evil.example", fetch_site=None)

    assert found is is_allowed


@pytest.mark.parametrize(
    ("origin", "host", "is_allowed"),
    [
        ("http://app.example", "app.example", True),
        ("https://app.example", "app.example", True),
        ("http://app.example:80", "app.example", True),
        ("http://app.example:8080", "app.example:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://APP.example", "app.EXAMPLE", True),
        ("http://app.example:8080", "app.example", False),
        ("http://app.example", "app.example:8080", False),
        ("https://evil.example", "app.example", False),
        ("https://app.example.evil", "app.example", False),
        ("file://app.example", "app.example", False),
        ("null", "app.example", False),
        ("", "app.example", False),
        ("http://", "app.example", False),
        ("http://app.example", None, False),
        ("http://app.example", "", False),
        ("http://app.example", "app.example:x", False),
        ("http://[::1", "app.example", False),
        ("http://app.example:99999", "app.example", False),
        # The library fails at these, with two types of error.
        ("http://xn--9.example", "xn--9.example", False),
        ("http://[::1]@", "[::1]@", False),
        ("http://[:]", "[:]", False),  # it accepts anything between brackets
    ],
)
def test_without_a_list_only_pages_of_the_same_host_are_allowed(
    origin: str, host: str | None, *, is_allowed: bool
) -> None:
    """The safe default; python-engineio treats an empty list as "all origins"."""
    assert SAME_HOST.allows(origin, host=host, fetch_site=None) is is_allowed


@pytest.mark.parametrize("rules", [LISTED, SAME_HOST])
@pytest.mark.parametrize(
    ("fetch_site", "is_allowed"),
    [
        (None, True),
        ("same-origin", True),
        ("none", True),
        ("same-site", False),
        ("cross-site", False),
    ],
)
def test_a_request_without_origin_is_allowed_unless_the_browser_marks_it_cross_site(
    rules: OriginRules, fetch_site: str | None, *, is_allowed: bool
) -> None:
    """Other clients send neither header; an image on another site sends `Sec-Fetch-Site`."""
    found = rules.allows(None, host="app.example", fetch_site=fetch_site)

    assert found is is_allowed


def test_any_origin_is_allowed_only_by_its_own_setting() -> None:
    """The setting is named `dangerously_...` because of this."""
    rules = OriginRules(allows_any=True)

    assert rules.allows("https://evil.example", host=None, fetch_site="cross-site")
    assert rules.allows("null", host=None, fetch_site=None)


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("localhost:8080", True),
        ("127.0.0.1", True),
        ("[::1]:8080", True),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("xn--9.example", False),
        ("[::1]@", False),
        ("", False),
        (None, False),
    ],
)
def test_open_mode_accepts_loopback_host_names_only(
    host: str | None, *, is_allowed: bool
) -> None:
    """Any domain can resolve to 127.0.0.1 (DNS rebinding)."""
    rules = OriginRules(loopback_only=True)

    assert rules.allows(f"http://{host}", host=host, fetch_site=None) is is_allowed


APPS = OriginRules(
    allowed=frozenset(
        {
            "https://*.example.org",
            "https://app.*.example.net:8443",
            "capacitor://localhost",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        }
    )
)


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("https://a.example.org", True),
        ("https://xn--bcher-kva.example.org", True),
        ("https://app.eu-1.example.net:8443", True),
        ("capacitor://localhost", True),
        ("chrome-extension://abcdefghijklmnopabcdefghijklmnop", True),
        ("https://example.org", False),
        ("https://.example.org", False),
        ("https://a.b.example.org", False),
        ("https://a.example.org:8443", False),
        ("https://a.example.org.evil", False),
        ("https://evil/a.example.org", False),
        ("https://evil#.example.org", False),
        ("https://evil:1@a.example.org", False),
        ("https://a.example.org\n", False),
        ("https://aXexample.org", False),
        ("http://a.example.org", False),
        ("https://app.eu.example.net", False),
        ("capacitor://other", False),
        ("ionic://localhost", False),
        ("null", False),
    ],
    ids=ascii,
)
def test_apps_and_one_label_of_a_host_can_be_listed(
    origin: str, *, is_allowed: bool
) -> None:
    """A wildcard never covers a dot, a port or a scheme."""
    found = APPS.allows(origin, host="app.example", fetch_site="cross-site")

    assert found is is_allowed


def test_the_origin_null_is_allowed_only_by_its_own_entry() -> None:
    """Sandboxed frames of every site send it."""
    rules = OriginRules(allowed=frozenset({"dangerously-null"}))

    assert rules.allows("null", host=None, fetch_site="cross-site")
    for origin in ("", "https://evil.example"):
        assert not rules.allows(origin, host="evil.example", fetch_site=None)


def test_a_bridge_that_knows_its_scheme_compares_it() -> None:
    """The insecure site of a host is not the secure one, and its cookies are the same."""
    rules = OriginRules(own_scheme="https")
    for origin, is_allowed in (
        ("https://push.example", True),
        ("HTTPS://push.example", True),
        ("http://push.example", False),
        ("https://push.example:8443", False),
    ):
        allowed = rules.allows(origin, host="push.example", fetch_site=None)
        assert allowed is is_allowed, origin
