"""The closed lists that clients can see: each entry has its own explanation."""

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
    REASONS_OF_BRIDGE,
    RESERVED_EVENTS,
    RESERVED_PREFIX,
    Closing,
    DeadLetterReason,
    EventError,
    ExitCode,
    Header,
    Outcome,
    Refusal,
    RequestOutcome,
    SyncReason,
)

EXPLAINED: list[
    type[DeadLetterReason | Refusal | Closing | SyncReason | RequestOutcome]
] = [DeadLetterReason, Refusal, Closing, SyncReason, RequestOutcome]


@pytest.mark.parametrize("closed_list", EXPLAINED)
def test_each_code_explains_itself(
    closed_list: type[
        DeadLetterReason | Refusal | Closing | SyncReason | RequestOutcome
    ],
) -> None:
    """Operators and authors of pages read the sentences instead of the source."""
    sentences = [entry.explanation for entry in closed_list]

    assert all(len(sentence) > 20 for sentence in sentences)
    assert all(not sentence.endswith(".") for sentence in sentences)
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize(
    "closed_list",
    [
        *(DeadLetterReason, Refusal, Closing, SyncReason),
        *(EventError, Outcome, RequestOutcome),
    ],
)
def test_codes_are_plain_words(closed_list: type[StrEnum]) -> None:
    """The codes are metric labels and header values, and pages compare them."""
    for entry in closed_list:
        assert entry.value.isascii()
        assert entry.value.replace("_", "").isalpha()
        assert entry.value == entry.name.lower()


def test_only_refusals_that_may_pass_are_temporary() -> None:
    """Retrying after any other refusal would only load the bridge."""
    assert {code for code in Refusal if code.is_temporary} == {
        Refusal.TOKEN_NOT_YET_VALID,
        Refusal.KEYS_UNAVAILABLE,
        Refusal.TOO_MANY_WINDOWS,
        Refusal.TOO_MANY_ATTEMPTS,
        Refusal.NOT_AVAILABLE,
        Refusal.DRAINING,
    }


def test_each_closing_code_says_whether_to_reconnect() -> None:
    """A reconnect with an expired token, or after a kick, would be refused or unwanted."""
    assert {code for code in Closing if code.reconnect} == {
        Closing.SLOW,
        Closing.DRAINING,
        Closing.BINARY_NOT_SUPPORTED,
        Closing.UNAVAILABLE,
    }


def test_events_of_the_bridge_and_of_the_client_are_reserved() -> None:
    """A message of a worker with such an event would be taken for one of theirs."""
    own = {EVENT_SYNC, EVENT_EXPIRING, EVENT_CLOSING, EVENT_REFRESH}

    assert all(event.startswith(RESERVED_PREFIX) for event in own)
    assert {
        *(EVENT_ACK, EVENT_JOIN),
        *("connect", "disconnect", "connect_error"),
        *("newListener", "removeListener"),
    } <= RESERVED_EVENTS
    assert EVENT_DEFAULT not in RESERVED_EVENTS


def test_all_headers_of_the_bridge_have_its_prefix() -> None:
    """`with_headers` removes headers with this prefix that a producer wrote."""
    assert all(header.startswith(HEADER_PREFIX) for header in Header)
    assert len({header.value for header in Header}) == len(Header)


def test_exit_codes_are_those_of_the_contract() -> None:
    """Scripts and service managers evaluate them."""
    assert (ExitCode.DONE, ExitCode.FAILED) == (0, 1)
    assert (ExitCode.USAGE, ExitCode.UNREACHABLE) == (2, 3)


def test_each_reason_for_a_dead_letter_has_advice() -> None:
    """`bridge dead show` ends with it."""
    assert all(reason.advice.endswith(".") for reason in DeadLetterReason)


def test_the_bridge_writes_only_its_own_reasons_into_the_header() -> None:
    """Operators also see messages that RabbitMQ dead-lettered; these have no such header."""
    assert set(DeadLetterReason) - set(REASONS_OF_BRIDGE) == {
        DeadLetterReason.EXPIRED,
        DeadLetterReason.UNROUTED,
        DeadLetterReason.OTHER,
    }
