"""`X-Forwarded-For` and `X-Forwarded-Proto` behind trusted proxies, against a simple reading."""

import re
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Final

from bridge.core.client_address import (
    arrived_by_https,
    client_address,
    counted_address,
    is_in,
    parse_networks,
)
from tests.fuzz.harness import Choices

MODULES: Final = ("bridge.core.client_address",)
_PEERS: Final = ("10.0.0.1", "", None, "203.0.113.9", "::ffff:10.0.0.2", "fe80::1%eth0")
_TRUSTED: Final = parse_networks(["10.0.0.0/8", "2001:db8::/32", "127.0.0.1"])
SEEDS: Final = (
    b"\x00203.0.113.9, 10.0.0.7",
    b"\x001.2.3.4:80,[2001:db8::1]:4711",
    b"\x01[2001:db8::1]",
    b"\x02::1%25eth0, x",
    b"\x03unknown, _hidden",
    b"\x04::ffff:10.0.0.9, fe80::1%x",
    b"\x00https,http",
    b"\x00" + b"10.0.0.1," * 200 + b"8.8.8.8",
)


def fuzz_one(data: bytes) -> None:
    """The address is the peer, or an entry to whose right everything is trusted."""
    choices = Choices(data)
    peer = choices.one_of(_PEERS)
    header = choices.rest().decode(errors="surrogateescape")
    found = client_address(peer, header, _TRUSTED)
    assert found.text
    assert len(found.text) <= max(len(header), 45)
    if found.text not in {peer, "unknown"}:
        ip_address(found.text)
        assert is_in(peer or "", _TRUSTED)
        _check_entries(header, found.text)
    if not is_in("unknown" if peer is None else peer, _TRUSTED):
        assert found.text == (peer or "unknown")
        assert not arrived_by_https(peer, header, _TRUSTED)
    counted = counted_address(found.text, 64)
    with suppress(ValueError):
        ip_network(counted)
        assert "%" not in counted
    counted_address(header, 64)


def _check_entries(header: str, text: str) -> None:
    entries = [entry.strip() for entry in header.split(",") if entry.strip()]
    for entry in reversed(entries):
        bare = re.sub(r"^\[(.*)\](:\d+)?$|^([^:]*):\d+$", r"\1\3", entry)
        try:
            address = str(ip_address(bare))
        except ValueError:
            return  # the entry to the right of it counts
        if address == text:
            return
        assert is_in(address, _TRUSTED)
    raise AssertionError(text)
