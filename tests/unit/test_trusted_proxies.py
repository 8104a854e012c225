"""The client's address from all header lines, and the report of one that cannot be read."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from structlog.testing import capture_logs

from bridge.core.client_address import parse_networks
from bridge.trusted_proxies import TrustedProxies

PROXY = "10.0.0.1"


def headers(*lines: str, name: str = "X-Forwarded-For") -> CIMultiDictProxy[str]:
    """Return the headers of a request with these lines, as aiohttp has them."""
    return CIMultiDictProxy(CIMultiDict([(name, line) for line in lines]))


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ((), PROXY),
        (("9.9.9.9",), "9.9.9.9"),
        (("8.8.8.8", "9.9.9.9"), "9.9.9.9"),
        (("8.8.8.8, 7.7.7.7", "9.9.9.9, 10.0.0.2:80"), "9.9.9.9"),
        (("9.9.9.9", ""), "9.9.9.9"),
    ],
)
def test_all_lines_of_the_header_count_in_their_order(
    lines: tuple[str, ...], address: str
) -> None:
    """HAProxy adds a line of its own after the one that the client forged."""
    proxies = TrustedProxies(parse_networks(["10.0.0.0/8"]))

    assert proxies.client_address(PROXY, headers(*lines)) == address


def test_all_lines_of_the_scheme_count_in_their_order() -> None:
    """The last one is the proxy's."""
    proxies = TrustedProxies(parse_networks(["10.0.0.0/8"]))

    for lines, is_https in (
        (("https",), True),
        (("http", "https"), True),
        (("https", "http"), False),
        ((), False),
    ):
        sent = headers(*lines, name="X-Forwarded-Proto")
        assert proxies.arrived_by_https(PROXY, sent) is is_https
        assert not proxies.arrived_by_https("9.9.9.9", sent)


def test_a_header_that_cannot_be_read_is_counted_and_logged_once() -> None:
    """Each request has it; a reload may have changed the proxies."""
    counted: list[int] = []
    networks = parse_networks([PROXY])
    proxies = TrustedProxies(networks, count_unreadable=lambda: counted.append(1))

    with capture_logs() as logs:
        for _ in range(3):
            assert proxies.client_address(PROXY, headers("a secret")) == PROXY
        assert proxies.client_address("9.9.9.9", headers("a secret")) == "9.9.9.9"
        proxies.replace(networks)
        proxies.client_address(PROXY, headers("a secret"))

    assert len(counted) == 4
    assert [line["event"] for line in logs] == ["proxy.address_unreadable"] * 2
    assert logs[0]["header"] == "X-Forwarded-For"
    assert logs[0]["proxy"] == PROXY
    assert "a secret" not in str(logs)
