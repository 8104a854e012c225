"""The closed lists that the outside can see: each entry is explained, none is twice."""

from enum import StrEnum

import pytest

from bridge.enums import (
    EVENT_ACK,
    EVENT_CLOSING,
    EVENT_DEFAULT,
    EVENT_EXPIRING,
    EVENT_JOIN,
    EVENT_REFRESH,
    EVENT_SYNC,
    HEADER_PREFIX,
    RESERVED_EVENTS,
    RESERVED_PREFIX,
    BrokerNames,
    Closing,
    DeadLetterReason,
    EventError,
    ExitCode,
    Header,
    LetterReason,
    Outcome,
    Refusal,
    SyncReason,
)

EXPLAINED: list[type[DeadLetterReason | Refusal | Closing | SyncReason]] = [
    DeadLetterReason,
    Refusal,
    Closing,
    SyncReason,
]


@pytest.mark.parametrize("closed_list", EXPLAINED)
def test_each_code_explains_itself(
    closed_list: type[DeadLetterReason | Refusal | Closing | SyncReason],
) -> None:
    """Operators and authors of pages read the sentence, not our source."""
    sentences = [entry.explanation for entry in closed_list]

    assert all(len(sentence) > 20 for sentence in sentences)
    assert all(not sentence.endswith(".") for sentence in sentences)
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize(
    "closed_list", [DeadLetterReason, Refusal, Closing, SyncReason, EventError, Outcome]
)
def test_codes_are_plain_words(closed_list: type[StrEnum]) -> None:
    """They are labels of metrics, values of headers, and compared in JavaScript."""
    for entry in closed_list:
        assert entry.value.isascii()
        assert entry.value.replace("_", "").isalpha()
        assert entry.value == entry.name.lower()


def test_what_may_come_right_by_itself_is_marked_temporary() -> None:
    """A page that retries the others would only hammer at the door."""
    assert {code for code in Refusal if code.is_temporary} == {
        Refusal.KEYS_UNAVAILABLE,
        Refusal.TOO_MANY_WINDOWS,
        Refusal.NOT_AVAILABLE,
        Refusal.DRAINING,
    }


def test_a_window_that_is_closed_knows_whether_to_come_back() -> None:
    """Reconnecting with a token whose life is over, or into a ban, helps nobody."""
    assert {code for code in Closing if code.reconnect} == {
        Closing.SLOW,
        Closing.DRAINING,
        Closing.UNAVAILABLE,
    }


def test_no_worker_can_send_an_event_that_is_the_bridges_or_the_clients_own() -> None:
    """The reserved names of design 2.1."""
    own = {EVENT_SYNC, EVENT_EXPIRING, EVENT_CLOSING, EVENT_REFRESH}

    assert all(event.startswith(RESERVED_PREFIX) for event in own)
    assert {
        *(EVENT_ACK, EVENT_JOIN),
        *("connect", "disconnect", "connect_error"),
        *("newListener", "removeListener"),
    } <= RESERVED_EVENTS
    assert EVENT_DEFAULT not in RESERVED_EVENTS


def test_all_headers_stand_under_the_prefix_that_is_ours() -> None:
    """It is what keeps a producer from writing them: see `with_headers`."""
    assert all(header.startswith(HEADER_PREFIX) for header in Header)
    assert len({header.value for header in Header}) == len(Header)


def test_names_on_the_broker_start_with_the_namespace() -> None:
    """Others bind to them, and rights are given by that prefix."""
    names = BrokerNames("team.a")

    assert names.messages == "team.a.messages"
    assert names.inbound == "team.a.inbound"
    assert names.inbound_queue() == "team.a.inbound.0"
    assert names.inbound_queue(3) == "team.a.inbound.3"
    assert names.retry_queue(1000) == "team.a.retry.1000"
    assert names.dead == "team.a.dead"
    assert BrokerNames().messages == "bridge.messages"


def test_exit_codes_are_those_of_the_contract() -> None:
    """Scripts and service managers act on them."""
    assert (ExitCode.DONE, ExitCode.FAILED) == (0, 1)
    assert (ExitCode.USAGE, ExitCode.UNREACHABLE) == (2, 3)


def test_every_reason_of_the_bridge_is_one_that_operators_can_ask_for() -> None:
    """A new reason would be shown as `other`, and could not be filtered by."""
    assert {reason.value for reason in DeadLetterReason} < {
        reason.value for reason in LetterReason
    }
    assert all(reason.explanation for reason in LetterReason)
