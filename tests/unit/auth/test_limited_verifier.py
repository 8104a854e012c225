"""Invalid tokens are limited by address, in bounded memory."""

import pytest

from bridge.auth.jwt import TokenRules, TokenVerifier
from bridge.auth.limited_verifier import LimitedVerifier
from bridge.enums import Refusal
from bridge.errors import RefusedError
from tests.tokens import SECRET, token

VERIFIER = TokenVerifier(TokenRules(algorithms=("HS256",), secrets=(SECRET,)))


async def refusal(limited: LimitedVerifier, address: str) -> Refusal:
    """Return the code for an invalid token of `address`."""
    with pytest.raises(RefusedError) as refused:
        await limited.verify("forged", address=address)
    return refused.value.code


async def test_an_address_with_many_invalid_tokens_must_wait() -> None:
    """Its valid tokens wait as well: they are not known to be valid."""
    limited = LimitedVerifier(VERIFIER, failures_per_second=1.5)

    codes = [await refusal(limited, "192.0.2.1") for _ in range(4)]

    assert codes == [Refusal.TOKEN_INVALID] * 3 + [Refusal.TOO_MANY_ATTEMPTS]
    assert limited.is_suspended("192.0.2.1")
    assert not limited.is_suspended("192.0.2.2")
    identity = await limited.verify(token(sub="ann"), address="192.0.2.2")
    assert identity.user == "ann"


async def test_the_number_of_addresses_is_bounded() -> None:
    """An attacker may have many; the one whose last failure is oldest is forgotten."""
    limited = LimitedVerifier(VERIFIER, failures_per_second=0.001, addresses_max=2)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        await refusal(limited, address)

    assert not limited.is_suspended("192.0.2.1")
    assert limited.is_suspended("192.0.2.2")
    assert limited.is_suspended("192.0.2.3")
