"""Which tokens open the door, and that what is issued does."""

import time

import jwt
import pytest

from bridge.auth.jwt import TokenRules, issue_token
from bridge.core.identity import Identity
from bridge.enums import Refusal
from bridge.errors import ConfigError, RefusedError
from bridge.settings.checks import JWT_ALGORITHMS
from tests.tokens import (
    SECRET,
    PrivateKey,
    claims,
    public_pem,
    token,
)
from tests.unit.auth.verifiers import OTHER_SECRET, refusal, verifier

# --- what is accepted -------------------------------------------------------------------


async def test_a_good_token_tells_the_user_and_until_when() -> None:
    """These two facts are all that the rest of the house gets from a token."""
    expires = int(time.time()) + 600

    identity = await verifier().verify(token(exp=expires))

    assert identity == Identity(user="alice", expires_s=float(expires))


@pytest.mark.parametrize("algorithm", JWT_ALGORITHMS)
async def test_each_algorithm_of_the_settings_signs_and_verifies(
    algorithm: str, private_keys: dict[str, PrivateKey]
) -> None:
    """An algorithm that the settings offer must not turn out to be missing."""
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


async def test_both_secrets_serve_while_one_is_being_rotated() -> None:
    """Otherwise changing the secret would throw out every user at once."""
    both = (OTHER_SECRET, SECRET)
    old = token()
    new = jwt.encode(claims(), OTHER_SECRET, algorithm="HS256")

    assert (await verifier(secrets=both).verify(old)).user == "alice"
    assert (await verifier(secrets=both).verify(new)).user == "alice"
    assert (await refusal(old, secrets=(OTHER_SECRET,))).code is Refusal.TOKEN_INVALID


async def test_replaced_rules_hold_from_the_next_token_on() -> None:
    """SIGHUP must end an old secret without a restart."""
    checker = verifier()
    await checker.verify(token())

    checker.replace_rules(TokenRules(algorithms=("HS256",), secrets=(OTHER_SECRET,)))

    with pytest.raises(RefusedError):
        await checker.verify(token())


async def test_rules_that_cannot_be_used_leave_the_old_ones_in_force() -> None:
    """A slip in a reload must not close the door."""
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


async def test_audience_and_issuer_are_not_looked_at_unless_set() -> None:
    """Tokens of most issuers carry both; the operator decides whether they count."""
    assert (await verifier().verify(token(aud="x", iss="y"))).user == "alice"


async def test_the_leeway_covers_clocks_that_differ() -> None:
    """A clock that is seconds off must not lock users out."""
    now = int(time.time())

    assert await verifier(leeway_s=60).verify(token(exp=now - 5))
    assert await verifier(leeway_s=60).verify(token(nbf=now + 5))


async def test_a_kid_means_nothing_to_a_secret() -> None:
    """Issuers name their keys; with secrets there is nothing to look up."""
    named = jwt.encode(claims(), SECRET, algorithm="HS256", headers={"kid": "k1"})

    assert (await verifier().verify(named)).user == "alice"


# --- issuing ----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_an_issued_token_is_one_that_the_same_rules_accept(
    algorithm: str,
) -> None:
    """`bridge token` is how an operator tries the door."""
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

    assert identity == Identity(user="zoë", expires_s=float(int(now_s + 60)))
    assert await verifier(algorithms=(algorithm,)).verify(plain) == identity


@pytest.mark.parametrize(("user", "algorithm"), [("", "HS256"), ("alice", "RS256")])
def test_no_token_is_issued_that_could_not_be_verified(
    user: str, algorithm: str
) -> None:
    """Better a clear word now than a refusal later."""
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


async def test_a_verifier_without_a_key_set_has_nothing_to_open_or_close() -> None:
    """The app opens and closes it all the same."""
    checker = verifier()

    await checker.open()
    await checker.close()

    assert (await checker.verify(token())).user == "alice"


def test_rules_show_no_secret_when_printed() -> None:
    """Values end up in tracebacks and debuggers."""
    rules = TokenRules(algorithms=("HS256",), secrets=(SECRET,), public_key="PEM")

    assert SECRET not in repr(rules)
    assert "PEM" not in repr(rules)
