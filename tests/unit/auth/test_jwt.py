"""Tokens that are accepted, and tokens that the bridge issues."""

import time
from unittest.mock import patch

import jwt
import pytest

from bridge.auth.issuing import issue_token
from bridge.auth.jwt import TokenRules
from bridge.core.identity import Identity
from bridge.enums import Refusal
from bridge.errors import ConfigError, RefusedError
from bridge.settings.checks import JWT_ALGORITHMS
from tests.conftest import eventually
from tests.tokens import (
    SECRET,
    PrivateKey,
    claims,
    public_pem,
    token,
)
from tests.unit.auth.verifiers import OTHER_SECRET, refusal, verifier

# --- accepted tokens --------------------------------------------------------------------


async def test_a_valid_token_gives_the_user_and_the_expiry() -> None:
    """Other packages use only these two facts of a token."""
    expires = int(time.time()) + 600

    identity = await verifier().verify(token(exp=expires))

    assert identity == Identity(user="alice", expires_s=float(expires))


@pytest.mark.parametrize("algorithm", JWT_ALGORITHMS)
async def test_each_algorithm_of_the_settings_signs_and_verifies(
    algorithm: str, private_keys: dict[str, PrivateKey]
) -> None:
    """The settings must not offer an algorithm that PyJWT lacks here."""
    if algorithm.startswith("HS"):
        signed = jwt.encode(claims(), SECRET, algorithm=algorithm)
        checker = verifier(algorithms=(algorithm,))
    else:
        key = private_keys[algorithm]
        signed = jwt.encode(claims(), key, algorithm=algorithm)
        checker = verifier(
            algorithms=(algorithm,), secrets=(), public_key=public_pem(key)
        )

    assert (await checker.verify(signed)).user == "alice"


async def test_both_secrets_verify_during_a_rotation() -> None:
    """With only the new secret, all users would be refused at once."""
    both = (OTHER_SECRET, SECRET)
    old = token()
    new = jwt.encode(claims(), OTHER_SECRET, algorithm="HS256")

    assert (await verifier(secrets=both).verify(old)).user == "alice"
    assert (await verifier(secrets=both).verify(new)).user == "alice"
    assert (await refusal(old, secrets=(OTHER_SECRET,))).code is Refusal.TOKEN_INVALID


async def test_replaced_rules_apply_to_the_next_token() -> None:
    """A reload can withdraw an old secret without a restart."""
    checker = verifier()
    await checker.verify(token())

    checker.replace_rules(TokenRules(algorithms=("HS256",), secrets=(OTHER_SECRET,)))

    with pytest.raises(RefusedError):
        await checker.verify(token())


async def test_invalid_rules_leave_the_old_ones_in_force() -> None:
    """A mistake in a reload must not refuse all users."""
    checker = verifier()

    with pytest.raises(ConfigError):
        checker.replace_rules(TokenRules(algorithms=("HS256",), secrets=("short",)))

    assert (await checker.verify(token())).user == "alice"


@pytest.mark.parametrize("audience", ["web", ["web"], ["other", "web"]])
async def test_one_accepted_audience_is_enough(audience: object) -> None:
    """`aud` is a string or a list (RFC 7519 section 4.1.3)."""
    accepted = ("mobile", "web")

    identity = await verifier(audience=accepted).verify(token(aud=audience))

    assert identity.user == "alice"


async def test_audience_and_issuer_are_ignored_unless_configured() -> None:
    """Most issuers set both; the operator decides whether they matter."""
    assert (await verifier().verify(token(aud="x", iss="y"))).user == "alice"


async def test_the_leeway_tolerates_clock_differences() -> None:
    """A clock that is wrong by seconds must not refuse users."""
    now = int(time.time())

    assert await verifier(leeway_s=60).verify(token(exp=now - 5))
    assert await verifier(leeway_s=60).verify(token(nbf=now + 5))


async def test_a_kid_is_ignored_for_secrets() -> None:
    """Issuers name their keys; a secret needs no lookup."""
    named = jwt.encode(claims(), SECRET, algorithm="HS256", headers={"kid": "k1"})

    assert (await verifier().verify(named)).user == "alice"


# --- known tokens -----------------------------------------------------------------------


async def test_a_token_that_is_presented_again_is_not_verified_again() -> None:
    """After a restart of a proxy all pages reconnect with the same tokens."""
    checker = verifier()
    again = token()
    with patch("jwt.decode", wraps=jwt.decode) as decode:
        identities = [await checker.verify(again) for _ in range(3)]
        await checker.verify(token(sub="ben"))

    assert identities == identities[:1] * 3
    assert decode.call_count == 2


async def test_a_known_token_is_verified_again_after_a_reload() -> None:
    """New rules may have another audience or issuer."""
    checker = verifier()
    known = token(aud="web")
    await checker.verify(known)

    checker.replace_rules(
        TokenRules(algorithms=("HS256",), secrets=(SECRET,), audience=("mobile",))
    )

    with pytest.raises(RefusedError):
        await checker.verify(known)


async def test_a_known_token_is_refused_when_its_secret_is_withdrawn() -> None:
    """A secret that leaked is removed by a reload."""
    checker = verifier(secrets=(OTHER_SECRET, SECRET))
    known = token()
    await checker.verify(known)

    checker.replace_rules(TokenRules(algorithms=("HS256",), secrets=(OTHER_SECRET,)))

    with pytest.raises(RefusedError):
        await checker.verify(known)


async def test_a_known_token_is_refused_once_it_expires() -> None:
    """A token may expire while its page is away."""
    checker = verifier(leeway_s=0)
    known = token(exp=int(time.time()) + 3)
    await checker.verify(known)

    async def is_refused() -> bool:
        try:
            await checker.verify(known)
        except RefusedError as exc:
            return exc.code is Refusal.TOKEN_EXPIRED
        return False

    await eventually(is_refused)


async def test_a_refused_token_is_refused_each_time() -> None:
    """Only tokens that passed all checks are known."""
    checker = verifier(audience=("web",))
    for _ in range(2):
        with pytest.raises(RefusedError):
            await checker.verify(token(aud="other"))


# --- issuing ----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_an_issued_token_is_accepted_by_the_same_rules(
    algorithm: str,
) -> None:
    """Operators test a bridge with the tokens of `bridge token`."""
    now_s = time.time()
    issued = issue_token(
        "zoë",
        secret=SECRET,
        algorithm=algorithm,
        ttl_s=60,
        audience="web",
        issuer="us",
        now_s=now_s,
    )
    plain = issue_token(
        "zoë",
        secret=SECRET,
        algorithm=algorithm,
        ttl_s=60,
        audience=None,
        issuer=None,
        now_s=now_s,
    )

    identity = await verifier(
        algorithms=(algorithm,), audience=("web",), issuer="us"
    ).verify(issued)

    assert identity == Identity(
        "zoë", expires_s=float(int(now_s + 60)), issued_s=float(int(now_s))
    )
    assert await verifier(algorithms=(algorithm,)).verify(plain) == identity


@pytest.mark.parametrize(("user", "algorithm"), [("", "HS256"), ("alice", "RS256")])
def test_a_token_that_could_not_be_verified_is_not_issued(
    user: str, algorithm: str
) -> None:
    """An error of the command is easier to understand than a refused connect."""
    with pytest.raises(ValueError, match=r"the user is empty|does not sign"):
        issue_token(
            user,
            secret=SECRET,
            algorithm=algorithm,
            ttl_s=60,
            audience=None,
            issuer=None,
            now_s=0,
        )


async def test_a_verifier_without_a_key_set_can_be_opened_and_closed() -> None:
    """The app does so in every mode."""
    checker = verifier()

    await checker.open()
    await checker.close()

    assert (await checker.verify(token())).user == "alice"


def test_printed_rules_contain_no_secret() -> None:
    """Tracebacks and debuggers print them."""
    rules = TokenRules(algorithms=("HS256",), secrets=(SECRET,), public_key="PEM")

    assert SECRET not in repr(rules)
    assert "PEM" not in repr(rules)
