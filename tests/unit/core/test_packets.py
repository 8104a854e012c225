"""Socket.IO packets from clients are parsed strictly: invalid ones are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core import packets
from bridge.core.packets import Packet, PacketType, parse_packet


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("0", Packet(PacketType.CONNECT, "/", None, None)),
        ('0{"token":"t"}', Packet(PacketType.CONNECT, "/", None, {"token": "t"})),
        ("0/other,", Packet(PacketType.CONNECT, "/other", None, None)),
        ("0/other", Packet(PacketType.CONNECT, "/other", None, None)),
        ("0/other?a=b,{}", Packet(PacketType.CONNECT, "/other", None, {})),
        ("1", Packet(PacketType.DISCONNECT, "/", None, None)),
        ('2["a",1]', Packet(PacketType.EVENT, "/", None, ["a", 1])),
        ('212["a"]', Packet(PacketType.EVENT, "/", 12, ["a"])),
        ('2/other,3["a"]', Packet(PacketType.EVENT, "/other", 3, ["a"])),
        ("37[]", Packet(PacketType.ACK, "/", 7, [])),
        (
            '2["\\ud83d","\\ude00"]',
            Packet(PacketType.EVENT, "/", None, ["\ud83d", "\ude00"]),
        ),
    ],
)
def test_valid_packets_are_parsed(text: str, packet: Packet) -> None:
    """The packets of the stock client (Socket.IO protocol, version 5)."""
    assert parse_packet(text) == packet


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "4{}",
        '51-["a",{"_placeholder":true,"num":0}]',
        '61-["a"]',
        "9",
        '\u0662["a"]',  # a digit of another script
        "2",
        "2{}",
        "2[]",
        "2[1]",
        '2"a"',
        "2[null]",
        '2["a"',
        '2["a"]x',
        "2[NaN]",
        "0{",
        "2" + "9" * 101 + '["a"]',
        "2" + "[" * 10_000,
        '2["\ud800"]',
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_packets_that_a_client_may_not_send_are_refused(text: str) -> None:
    """Binary packets above all: the number of their attachments is not limited."""
    with pytest.raises(ValueError):  # noqa: PT011 - the texts are many, the type is the point
        parse_packet(text)


@given(st.text(max_size=60) | st.text(alphabet='0123456789/,?-[]{}"a:', max_size=30))
def test_any_text_is_a_packet_or_a_value_error(text: str) -> None:
    """Any other exception would let a client write tracebacks into the log."""
    try:
        packet = parse_packet(text)
    except ValueError:
        return
    assert packet.namespace.startswith("/")


@given(
    st.text(min_size=1),
    st.lists(st.integers(-(2**53), 2**53) | st.text(), max_size=3),
    st.none() | st.integers(0, 10**16 - 1),
)
def test_any_event_name_and_arguments_are_parsed(
    name: str, arguments: list[object], packet_id: int | None
) -> None:
    """Applications choose the names of their events."""
    number = "" if packet_id is None else str(packet_id)

    packet = parse_packet(f"2{number}{json.dumps([name, *arguments])}")

    assert packet == Packet(PacketType.EVENT, "/", packet_id, [name, *arguments])


def test_rendered_packets_match_the_protocol() -> None:
    """Byte for byte as the stock client expects them."""
    refused: dict[str, object] = {"code": "draining"}

    assert packets.connect_reply("s", None) == '0{"sid":"s"}'
    assert packets.connect_reply("s", "e-1.n") == '0{"sid":"s","pid":"e-1.n"}'
    assert (
        packets.connect_error("/", "no", refused)
        == '4{"message":"no","data":{"code":"draining"}}'
    )
    assert packets.connect_error("/x", "no", {}) == '4/x,{"message":"no","data":{}}'
    assert packets.event("a", {"b": 1}) == '2["a",{"b":1}]'
    assert packets.reply(7, {"ok": True}) == '37[{"ok":true}]'
    assert packets.DISCONNECT_PACKET == "1"
