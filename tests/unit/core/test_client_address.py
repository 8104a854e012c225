"""The client address behind trusted proxies, which a client cannot forge."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.client_address import (
    ClientAddress,
    client_address,
    counted_address,
    parse_networks,
)

TRUSTED = parse_networks(["10.0.0.0/8", "192.168.1.1", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("1.1.1.1", None, "1.1.1.1"),
        ("1.1.1.1", "9.9.9.9", "1.1.1.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "made-up, 8.8.8.8, 9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "8.8.8.8, 9.9.9.9, 192.168.1.1 ,10.7.7.7", "9.9.9.9"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9, nonsense", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9:1234", "9.9.9.9"),
        ("10.0.0.1", "9.9.9.9:1234, 10.0.0.2:80", "9.9.9.9"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "2001:DB8:0::1", "2001:db8::1"),
        ("10.0.0.1", "9.9.9.9:", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9:x", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9:123456", "10.0.0.1"),
        ("10.0.0.1", "[2001:db8::1", "10.0.0.1"),
        ("10.0.0.1", "[]:80", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("::ffff:1.1.1.1", "9.9.9.9", "::ffff:1.1.1.1"),
        (None, "9.9.9.9", "unknown"),
        ("a socket file", "9.9.9.9", "a socket file"),
    ],
)
def test_the_address_is_the_nearest_one_that_is_not_a_trusted_proxy(
    peer: str | None, forwarded_for: str | None, address: str
) -> None:
    """Clients can send the header too: only entries added by trusted proxies count."""
    assert client_address(peer, forwarded_for, TRUSTED).text == address


@given(st.text(max_size=60))
def test_without_trusted_proxies_the_header_is_ignored(header: str) -> None:
    """The default. Otherwise a client could evade every limit per address."""
    assert client_address("1.1.1.1", header, ()) == ClientAddress("1.1.1.1")


@given(st.text(alphabet="0123456789abcdef.:,%[] ", max_size=60))
def test_no_header_value_raises(header: str) -> None:
    """Clients control the header; a proxy only appends to it."""
    found = client_address("10.0.0.1", header, TRUSTED)
    assert ip_address(found.text)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "is_unreadable"),
    [
        ("10.0.0.1", None, False),
        ("10.0.0.1", "9.9.9.9:1", False),
        ("10.0.0.1", "nonsense, 9.9.9.9", False),  # sent by the client
        ("10.0.0.1", "unknown", True),
        ("10.0.0.1", "nonsense, 10.0.0.2", True),
        ("1.1.1.1", "nonsense", False),
    ],
)
def test_an_entry_of_a_trusted_proxy_that_cannot_be_read_is_reported(
    peer: str, forwarded_for: str | None, *, is_unreadable: bool
) -> None:
    """All clients of such a proxy share one limit, which an operator has to know."""
    found = client_address(peer, forwarded_for, TRUSTED)

    assert found.is_unreadable is is_unreadable


def test_an_invalid_network_is_refused() -> None:
    """The validation of the settings relies on this."""
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/33"):
        parse_networks(["10.0.0.0/33"])


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unknown", "unknown"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, counted: str) -> None:
    """A host can use every address of its network; IPv4 clients of `::` stay apart."""
    assert counted_address(address, 64) == counted


def test_the_length_of_the_network_is_the_operators_choice() -> None:
    """Some providers give a host a /56, others share a /64."""
    assert counted_address("2001:db8:1:2::1", 48) == "2001:db8:1::/48"
    assert counted_address("2001:db8:1:2::1", 128) == "2001:db8:1:2::1/128"
