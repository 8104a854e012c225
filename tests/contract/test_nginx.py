"""
Check `compose/nginx.conf`, for one bridge on the same host.

The configuration for several bridges, whose relevant lines are the same, runs in
`tests/integration/balancers`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from bridge.core.durations import parse_duration_s
from bridge.settings.model import Settings

CONFIG = Path(__file__).parents[2] / "compose/nginx.conf"

Directive = tuple[list[str], "list[Directive] | None"]


def parse_nginx(tokens: Iterator[str], *, is_inside: bool = False) -> list[Directive]:
    """Parse directives to the end of their block; each ends in `;` or has its own block."""
    found: list[Directive] = []
    words: list[str] = []
    for token in tokens:
        if token == "}":
            assert is_inside, "unexpected closing brace"
            assert not words, f"no ; after {words}"
            return found
        if token in {";", "{"}:
            assert words, f"nothing before {token}"
            block = parse_nginx(tokens, is_inside=True) if token == "{" else None
            found.append((words, block))
            words = []
        else:
            words.append(token.strip("\"'"))
    assert not is_inside, "a brace is missing"
    assert not words, f"no ; after {words}"
    return found


def nginx() -> list[Directive]:
    text = re.sub(r"(?m)#.*$", "", CONFIG.read_text())
    tokens = re.findall(r"\"[^\"]*\"|'[^']*'|[{};]|[^\s{};\"']+", text)
    return parse_nginx(iter(tokens))


def block(directives: list[Directive], *name: str) -> list[Directive]:
    """Return the directives of the block with this name."""
    [found] = [inside for words, inside in directives if words == list(name)]
    assert found is not None
    return found


def values(directives: list[Directive]) -> dict[str, str]:
    """Return the simple directives of a block; headers are named `proxy_set_header NAME`."""
    return {
        " ".join(words[:-1]): words[-1] for words, inside in directives if not inside
    }


def test_nginx_forwards_the_headers_that_the_bridge_needs() -> None:
    """Each missing line would break something that works without nginx."""
    http = block(nginx(), "http")
    location = values(block(block(http, "server"), "location", "/socket.io/"))
    connection = values(block(http, "map", "$http_upgrade", "$connection_header"))

    assert location["proxy_http_version"] == "1.1"
    assert location["proxy_set_header Upgrade"] == "$http_upgrade"
    assert location["proxy_set_header Connection"] == "$connection_header"
    assert connection == {"default": "upgrade", "": ""}
    assert location["proxy_set_header Host"] == "$http_host"
    assert location["proxy_set_header X-Forwarded-For"] == "$proxy_add_x_forwarded_for"
    assert location["proxy_pass"] == "http://bridge"


def test_nginx_waits_longer_than_a_window_may_be_silent() -> None:
    """Otherwise nginx would close connections of healthy windows."""
    location = block(block(block(nginx(), "http"), "server"), "location", "/socket.io/")
    fields = Settings.model_fields
    silent_s = parse_duration_s(fields["ping_interval"].default) + parse_duration_s(
        fields["ping_timeout"].default
    )

    for name in ("proxy_read_timeout", "proxy_send_timeout"):
        assert parse_duration_s(values(location)[name]) > silent_s


def test_nginx_connects_to_the_port_that_compose_publishes() -> None:
    """Its log must not contain the query string, which has session ids."""
    http = block(nginx(), "http")

    assert values(block(http, "upstream", "bridge"))["server"] == "127.0.0.1:8080"
    assert "$request_uri" not in str(http)
    assert '"$request"' not in str(http)
