"""Which tokens do not open the door, and what a page is told of them."""

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
    """The page forgot it: another message than for a bad one."""
    assert (await refusal(nothing)).code is Refusal.TOKEN_MISSING


async def test_an_expired_token_has_its_own_code() -> None:
    """The page can act on it: get a new one."""
    expired = token(exp=int(time.time()) - 60)

    assert (await refusal(expired)).code is Refusal.TOKEN_EXPIRED


async def test_an_expired_token_that_is_not_ours_is_just_invalid() -> None:
    """Nothing is said about the claims of a token that nobody signed."""
    expired = token(exp=int(time.time()) - 60)

    found = await refusal(expired, secrets=(OTHER_SECRET,))

    assert found.code is Refusal.TOKEN_INVALID


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
        "x" * 8193,
        "eyJ" + "A" * 8000,
        f"{base64url(b'[' * 3000)}.e30.e30",
        f"{segment([])}.e30.e30",
        f"{segment({'alg': ['HS256']})}.e30.e30",
        f"{segment({'alg': 'HS256', 'kid': 7})}.e30.e30",
    ],
)
async def test_garbage_is_invalid_and_never_an_error_of_ours(garbage: object) -> None:
    """`auth` of a connection holds whatever a stranger put there."""
    assert (await refusal(garbage)).code is Refusal.TOKEN_INVALID


async def test_a_token_of_more_than_8_kib_is_refused_however_well_signed() -> None:
    """Checking costs time by the byte, and the sender none."""
    fits = token(filler="x" * 6000)
    too_long = token(filler="x" * 6100)

    assert len(fits) < 8192 < len(too_long)
    assert (await verifier().verify(fits)).user == "alice"
    assert "longer than 8192 characters" in str(await refusal(too_long))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
async def test_alg_none_is_refused_with_and_without_a_signature(algorithm: str) -> None:
    """The oldest forgery of all (RFC 8725 section 3.2)."""
    header = {"alg": algorithm, "typ": "JWT"}

    assert (await refusal(forge(header, claims()))).code is Refusal.TOKEN_INVALID
    assert (await refusal(forge(header, claims(), b"x"))).code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize("algorithms", [("RS256",), ("RS256", "HS256")])
async def test_a_public_key_is_never_taken_for_a_secret(
    algorithms: tuple[str, ...], rsa_key: PrivateKey
) -> None:
    """Everybody knows the public key: signing with it must prove nothing."""
    pem = public_pem(rsa_key)
    rules = {"algorithms": algorithms, "public_key": pem}

    for variant in (pem, pem.strip(), pem.replace("\n", "")):
        forged = sign_anything({"alg": "HS256"}, claims(), variant)
        assert (await refusal(forged, **rules)).code is Refusal.TOKEN_INVALID


async def test_a_secret_is_never_taken_for_a_public_key(rsa_key: PrivateKey) -> None:
    """The confusion the other way round."""
    forged = sign_anything({"alg": "RS256"}, claims(), SECRET)
    rules = {"algorithms": ("RS256", "HS256"), "public_key": public_pem(rsa_key)}

    assert (await refusal(forged, **rules)).code is Refusal.TOKEN_INVALID


async def test_an_algorithm_that_the_settings_lack_is_refused() -> None:
    """A good signature by our own secret does not help: the settings decide."""
    signed = jwt.encode(claims(), SECRET, algorithm="HS512")

    assert (await refusal(signed)).code is Refusal.TOKEN_INVALID


async def test_an_algorithm_without_a_key_for_it_is_refused(
    private_keys: dict[str, PrivateKey],
) -> None:
    """One public key serves its own kind alone, whatever else is accepted."""
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
    """Who could name the key could sign as anybody, or make the bridge call out."""
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
async def test_a_kid_opens_no_file_and_no_door(kid: str) -> None:
    """A kid is a name to look up; an empty file as key was a way in elsewhere."""
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
async def test_a_token_that_demands_an_extension_is_refused(
    header: dict[str, object],
) -> None:
    """RFC 7515 section 4.1.11: what is critical and not understood must be refused."""
    demanding = sign_anything({"alg": "HS256"} | header, claims(), SECRET)

    assert (await refusal(demanding)).code is Refusal.TOKEN_INVALID


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
        pytest.param({"nbf": int(time.time()) + 3600}, {}, id="{'nbf': in an hour}-{}"),
        ({"sub": None}, {}),
    ],
    ids=str,
)
async def test_claims_that_do_not_fit_are_refused(
    changes: dict[str, object], rules: dict[str, object]
) -> None:
    """A token for another service, or one without an end, opens nothing here."""
    assert (await refusal(token(**changes), **rules)).code is Refusal.TOKEN_INVALID


@pytest.mark.parametrize(
    "sub",
    [
        "",
        7,
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
async def test_a_sub_that_is_no_user_is_refused(sub: object) -> None:
    """The user names a room: what could name another one, or all, must not get in."""
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
async def test_an_exp_that_is_no_time_is_refused(exp: str) -> None:
    """A timer is set by it: what is no time, or no time a timer can hold, ends here."""
    signed = sign_anything(
        {"alg": "HS256"}, f'{{"sub": "alice", "exp": {exp}}}', SECRET
    )

    found = await refusal(signed)

    assert found.code in {Refusal.TOKEN_INVALID, Refusal.TOKEN_EXPIRED}


@pytest.mark.parametrize("body", ["[]", "7", "", "{", "nul", "[" * 3000, '"text"'])
async def test_claims_that_are_no_object_are_refused(body: str) -> None:
    """Even a signed token may hold anything: issuers have bugs too."""
    signed = sign_anything({"alg": "HS256"}, body, SECRET)

    assert (await refusal(signed)).code is Refusal.TOKEN_INVALID


GOOD = token(exp=int(time.time()) + 86400)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 127))
@example(len(GOOD) - 1, ord("A"))
async def test_no_token_with_one_character_changed_verifies(
    place: int, character: int
) -> None:
    """Not even the loose bits at the end of base64, or two tokens would be one."""
    changed = GOOD[:place] + chr(character) + GOOD[place + 1 :]
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
    """No claim may raise anything else: it would be an error of ours, in the log."""
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
    """The header is read before anything is verified: by far the easiest to attack."""
    signed = sign_anything({"alg": "HS256"} | changes, claims(), SECRET)

    try:
        identity = await verifier().verify(signed)
    except RefusedError:
        return
    assert identity.user == "alice"
