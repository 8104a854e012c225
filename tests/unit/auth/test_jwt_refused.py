"""Tokens that are refused, and the code that the page receives."""

import time

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.enums import Refusal
from bridge.errors import RefusedError
from tests.tokens import (
    SECRET,
    PrivateKey,
    base64url,
    claims,
    public_pem,
    segment,
    token,
)
from tests.unit.auth.verifiers import (
    OTHER_SECRET,
    forge,
    refusal,
    sign_anything,
    verifier,
)


@pytest.mark.parametrize("nothing", [None, ""])
async def test_a_missing_token_has_its_own_code(nothing: object) -> None:
    """The page forgot the token, which needs another fix than an invalid one."""
    assert (await refusal(nothing)).code is Refusal.TOKEN_MISSING


async def test_an_expired_token_has_its_own_code() -> None:
    """The page can react to it: get a new token."""
    expired = token(exp=int(time.time()) - 60)

    assert (await refusal(expired)).code is Refusal.TOKEN_EXPIRED


async def test_an_expired_token_with_a_bad_signature_is_invalid() -> None:
    """The claims of an unverified token are not interpreted."""
    expired = token(exp=int(time.time()) - 60)

    refused = await refusal(expired, secrets=(OTHER_SECRET,))

    assert refused.code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize(
    "garbage",
    [
        7,
        True,
        b"bytes",
        ["a"],
        {"token": "a"},
        ".",
        "..",
        "a.b",
        "a.b.c",
        "....",
        "e30.e30.e30",
        "\ud800.\ud800.\ud800",
        "é.é.é",
        "\x00" * 30,
        "x" * 16_385,
        "eyJ" + "A" * 8000,
        f"{base64url(b'[' * 3000)}.e30.e30",
        f"{segment([])}.e30.e30",
        f"{segment({'alg': ['HS256']})}.e30.e30",
        f"{segment({'alg': 'HS256', 'kid': 7})}.e30.e30",
    ],
)
async def test_garbage_is_an_invalid_token(garbage: object) -> None:
    """A client can put any value into `auth`; none of them may raise another error."""
    assert (await refusal(garbage)).code is Refusal.TOKEN_INVALID


async def test_a_token_above_16_kib_is_refused_despite_a_valid_signature() -> None:
    """The cost of verification grows with the size, and the sender pays nothing."""
    fits = token(filler="x" * 12_000)
    too_long = token(filler="x" * 12_300)

    assert len(fits) < 16_384 < len(too_long)
    assert (await verifier().verify(fits)).user == "alice"
    assert "longer than 16384 characters" in str(await refusal(too_long))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
async def test_alg_none_is_refused_with_and_without_a_signature(algorithm: str) -> None:
    """The oldest attack on JWT (RFC 8725 section 3.2)."""
    header = {"alg": algorithm, "typ": "JWT"}

    assert (await refusal(forge(header, claims()))).code is Refusal.TOKEN_INVALID
    assert (await refusal(forge(header, claims(), b"x"))).code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize("algorithms", [("RS256",), ("RS256", "HS256")])
async def test_a_public_key_is_never_used_as_a_secret(
    algorithms: tuple[str, ...], rsa_key: PrivateKey
) -> None:
    """Everyone knows the public key, so an HMAC with it proves nothing."""
    pem = public_pem(rsa_key)
    rules = {"algorithms": algorithms, "public_key": pem}

    for variant in (pem, pem.strip(), pem.replace("\n", "")):
        forged = sign_anything({"alg": "HS256"}, claims(), variant)
        assert (await refusal(forged, **rules)).code is Refusal.TOKEN_INVALID


async def test_a_secret_is_never_used_as_a_public_key(rsa_key: PrivateKey) -> None:
    """The reverse of the confusion above."""
    forged = sign_anything({"alg": "RS256"}, claims(), SECRET)
    rules = {"algorithms": ("RS256", "HS256"), "public_key": public_pem(rsa_key)}

    assert (await refusal(forged, **rules)).code is Refusal.TOKEN_INVALID


async def test_an_algorithm_that_is_not_configured_is_refused() -> None:
    """A valid signature does not matter: the settings choose the algorithms."""
    signed = jwt.encode(claims(), SECRET, algorithm="HS512")

    assert (await refusal(signed)).code is Refusal.TOKEN_INVALID


async def test_an_algorithm_without_a_key_for_it_is_refused(
    private_keys: dict[str, PrivateKey],
) -> None:
    """A public key verifies only algorithms of its own kind."""
    signed = jwt.encode(claims(), private_keys["ES256"], algorithm="ES256")
    pem = public_pem(private_keys["RS256"])
    both = ("RS256", "ES256")

    with_other_key = await refusal(signed, algorithms=both, public_key=pem)
    with_no_key = await refusal(signed, algorithms=both)

    assert with_other_key.code is with_no_key.code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize(
    "header",
    [
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["MIIB"]},
        {"jwk": {"kty": "oct", "k": base64url(OTHER_SECRET.encode())}},
    ],
)
async def test_keys_and_addresses_in_a_token_are_never_used(
    header: dict[str, object],
) -> None:
    """A client that chose the key could sign as any user, or make the bridge send requests."""
    forged = jwt.encode(claims(), OTHER_SECRET, algorithm="HS256", headers=header)
    honest = jwt.encode(claims(), SECRET, algorithm="HS256", headers=header)

    assert (await refusal(forged)).code is Refusal.TOKEN_INVALID
    assert (await verifier().verify(honest)).user == "alice"


@pytest.mark.parametrize(
    "kid",
    [
        "../../../dev/null",
        "/etc/passwd",
        "x' UNION SELECT 'key' --",
        "http://evil.example/",
        "\x00",
        "a" * 4000,
    ],
)
async def test_a_kid_is_never_a_path_or_an_address(kid: str) -> None:
    """Other implementations read the key from a path, and an empty file was a valid key."""
    forged = sign_anything({"alg": "HS256", "kid": kid}, claims(), "")

    assert (await refusal(forged)).code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": True},
        {"crit": []},
        {"crit": None},
        {"b64": False},
    ],
)
async def test_a_token_that_requires_an_extension_is_refused(
    header: dict[str, object],
) -> None:
    """RFC 7515 section 4.1.11: unsupported critical extensions must be refused."""
    extended = sign_anything({"alg": "HS256"} | header, claims(), SECRET)

    assert (await refusal(extended)).code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"aud": "other"}, {"audience": ("web",)}),
        ({"aud": ["other", "more"]}, {"audience": ("web",)}),
        ({"aud": []}, {"audience": ("web",)}),
        ({"aud": {"web": 1}}, {"audience": ("web",)}),
        ({"aud": ["web", 7]}, {"audience": ("web",)}),
        ({}, {"audience": ("web",)}),
        ({"iss": "other"}, {"issuer": "us"}),
        ({}, {"issuer": "us"}),
        ({"exp": None}, {}),
        ({"sub": None}, {}),
    ],
    ids=str,
)
async def test_claims_that_break_the_rules_are_refused(
    changes: dict[str, object], rules: dict[str, object]
) -> None:
    """A token for another service, or one without an expiry, is not valid here."""
    assert (await refusal(token(**changes), **rules)).code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_that_is_not_valid_yet_is_refused_for_now(claim: str) -> None:
    """The clock of this machine or of the issuer is wrong, and will be right later."""
    early = token(**{claim: int(time.time()) + 3600})

    assert (await refusal(early)).code is Refusal.TOKEN_NOT_YET_VALID


@pytest.mark.parametrize(
    "sub",
    [
        "",
        7.5,
        True,
        ["alice"],
        {},
        "a\nb",
        "a\x00",
        "\x7f",
        "a" * 256,
        "é" * 128,
        "\ud800",
    ],
    ids=ascii,
)
async def test_a_sub_that_is_not_a_valid_user_is_refused(sub: object) -> None:
    """The user selects an inbox and a room, so the value must be unambiguous."""
    signed = sign_anything({"alg": "HS256"}, claims(sub=sub), SECRET)

    assert (await refusal(signed)).code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize(
    "exp",
    [
        '"soon"',
        '"99999999999"',
        "true",
        "false",
        "null",
        "[]",
        "{}",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "1" + "0" * 400,
        "9" * 4999,
        "-1",
        "253402300800",
        "1790000000000",
    ],
    ids=lambda text: text[:20],
)
async def test_an_invalid_exp_is_refused(exp: str) -> None:
    """A timer is set to this time, so it must be a number within the range of a timer."""
    signed = sign_anything(
        {"alg": "HS256"}, f'{{"sub": "alice", "exp": {exp}}}', SECRET
    )

    refused = await refusal(signed)

    assert refused.code in {Refusal.TOKEN_INVALID, Refusal.TOKEN_EXPIRED}


@pytest.mark.parametrize("body", ["[]", "7", "", "{", "nul", "[" * 3000, '"text"'])
async def test_claims_that_are_not_an_object_are_refused(body: str) -> None:
    """A signed token can still be malformed: issuers have bugs, too."""
    signed = sign_anything({"alg": "HS256"}, body, SECRET)

    assert (await refusal(signed)).code is Refusal.TOKEN_INVALID


GOOD = token(exp=int(time.time()) + 86400)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 127))
@example(len(GOOD) - 1, ord("A"))
async def test_a_token_with_one_changed_character_is_refused(
    position: int, character: int
) -> None:
    """This includes the unused bits at the end of base64."""
    changed = GOOD[:position] + chr(character) + GOOD[position + 1 :]
    if changed == GOOD:
        return

    with pytest.raises(RefusedError):
        await verifier().verify(changed)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("rules", [{}, {"audience": ("web",), "issuer": "us"}])
@given(
    changes=st.dictionaries(
        st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "iss", "jti"]), JSON_VALUES
    ),
)
async def test_signed_claims_of_any_shape_give_an_identity_or_a_refusal(
    changes: dict[str, object], rules: dict[str, object]
) -> None:
    """Any other exception would be a bug, and any client could fill the log with it."""
    signed = sign_anything({"alg": "HS256"}, claims() | changes, SECRET)

    try:
        identity = await verifier(**rules).verify(signed)
    except RefusedError:
        return
    assert identity.user


@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "cty", "zip"]), JSON_VALUES)
)
async def test_headers_of_any_shape_give_an_identity_or_a_refusal(
    changes: dict[str, object],
) -> None:
    """The header is parsed before anything is verified, so it is the easiest to attack."""
    signed = sign_anything({"alg": "HS256"} | changes, claims(), SECRET)

    try:
        identity = await verifier().verify(signed)
    except RefusedError:
        return
    assert identity.user == "alice"
