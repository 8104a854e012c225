"""Tables with long values on a terminal of 80 columns."""

import pytest

from bridge.cli.tables import print_table
from bridge.cli.users import print_user
from bridge.core.contracts.operator.users import UserDetail, WindowFacts


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the terminal have 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def test_only_the_long_column_of_a_window_is_folded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before, every column was folded to some characters, `transport` to `transpor` too."""
    window = WindowFacts(
        bridge="bridge-eu-west-1 worker 3",
        sid_short="aZ9xK2lm",
        transport="websocket",
        address="2001:db8:85a3:1234:5678:8a2e:370:7334",
        connected_s=1764490000.0,
        offset=123456789,
        acks="manual",
        live=False,
        waiting_bytes=1048576,
    )
    print_user(
        UserDetail(
            user="ann",
            depth=1,
            waiting=1,
            delivered=1,
            last=1,
            last_connect_s=None,
            bridges=1,
            silent=0,
            windows=[window],
            presence=[],
        )
    )

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for word in ("window", "transport", "offset", "acks", "unread", "from"):
        assert word in lines[0].split()
    for word in ("aZ9xK2lm", "websocket", "123456789", "manual", "1048576"):
        assert word in lines[1].split()
    folded = "".join(line[-30:].strip() for line in lines[1:]).replace(" ", "")
    for part in ("7334", "worker3", "catchingup"):
        assert part in folded


def test_a_long_user_is_folded_and_no_other_column(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user may have 255 bytes."""
    print_table(
        ("user", "last connect"),
        [("u" * 255, "2025-11-30 08:06:40")],
        folded=frozenset({"user"}),
    )

    lines = capsys.readouterr().out.splitlines()
    assert "2025-11-30 08:06:40" in lines[1]
    assert sum(line.count("u") for line in lines[1:]) == 255
