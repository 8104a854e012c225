"""Algorithms of each kind of key, and keys that are refused at the start."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from bridge.auth.jwt import TokenRules, TokenVerifier
from bridge.auth.keys import algorithms_of, load_public_key, parse_key_set
from bridge.errors import ConfigError
from tests.tokens import SECRET, PrivateKey, base64url, public_pem


def jwk(key: PrivateKey, **members: object) -> dict[str, object]:
    """Return the public half of `key` as an issuer publishes it, with `members` added."""
    if isinstance(key, rsa.RSAPrivateKey):
        found = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        found = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        found = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    found.pop("key_ops", None)
    return found | members


def key_set(*entries: object) -> bytes:
    return json.dumps({"keys": entries}).encode()


def problems_of(**rules: object) -> str:
    values: dict[str, object] = {"algorithms": ("HS256",), "secrets": (SECRET,)}
    with pytest.raises(ConfigError) as caught:
        TokenVerifier(TokenRules(**(values | rules)))  # type: ignore[arg-type]  # tests mix types on purpose
    return str(caught.value)


def pem_problem(pem: str, *algorithms: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_public_key(pem, algorithms=algorithms or ("RS256", "ES256"))
    text = str(caught.value)
    assert text.startswith("BRIDGE_JWT_PUBLIC_KEY: ")
    assert not any(line in text for line in pem.splitlines() if len(line) > 40)
    return text


# --- keys of the settings ---------------------------------------------------------------


def test_each_kind_of_key_verifies_its_own_algorithms(
    private_keys: dict[str, PrivateKey],
) -> None:
    """This binding makes a confusion of algorithms impossible."""
    for algorithm, key in private_keys.items():
        bound = load_public_key(public_pem(key), algorithms=[algorithm]).algorithms
        assert algorithm in bound
        assert {name[:2] for name in bound} == {algorithm[:2]}


def test_a_weak_rsa_key_is_refused_at_the_start() -> None:
    """RFC 7518 section 3.3 requires 2048 bits."""
    weak = public_pem(rsa.generate_private_key(65537, 1024))  # noqa: S505 - weak on purpose

    assert "has 1024 bits, RSA needs 2048" in pem_problem(weak)


def test_a_private_key_is_refused(rsa_key: PrivateKey) -> None:
    """It would work, but the bridge must not have it."""
    pem = rsa_key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    ).decode()

    assert "is a private key" in pem_problem(pem)


def test_a_certificate_is_refused_with_a_fix() -> None:
    """One command extracts the public key of a certificate."""
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"

    assert "openssl x509 -pubkey" in pem_problem(pem)


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "é",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n",
        "-----BEGIN PUBLIC KEY-----",
    ],
)
def test_an_unreadable_key_is_refused(pem: str) -> None:
    """A truncated copy is the usual cause."""
    assert "not a readable public key in PEM" in pem_problem(pem)


def test_a_key_that_fits_no_accepted_algorithm_is_refused(
    private_keys: dict[str, PrivateKey],
) -> None:
    """With such settings, no token could be valid."""
    pem = public_pem(private_keys["ES384"])

    assert "fits ES384, but BRIDGE_JWT_ALGORITHMS has RS256" in pem_problem(
        pem, "RS256"
    )


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256K1()),
        dsa.generate_private_key(1024),  # noqa: S505 - weak keys are generated faster
    ],
    ids=["a curve without algorithm", "a kind without algorithm"],
)
def test_a_key_of_an_unsupported_kind_is_refused(
    key: ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey,
) -> None:
    """No JWT algorithm uses such a key."""
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    assert "a kind of key that no algorithm" in pem_problem(pem.decode())


def test_both_edwards_curves_verify_eddsa() -> None:
    """EdDSA is the algorithm of both (RFC 8037)."""
    assert algorithms_of(ed448.Ed448PrivateKey.generate().public_key()) == {"EdDSA"}
    assert algorithms_of("no key at all") == frozenset()


def test_a_public_key_is_ignored_if_only_secrets_are_accepted() -> None:
    """It is not used, so its content does not matter."""
    TokenVerifier(
        TokenRules(algorithms=("HS256",), secrets=(SECRET,), public_key="rubbish")
    )


def test_secrets_that_are_not_secret_are_refused(rsa_key: PrivateKey) -> None:
    """With a public key as secret, everyone could sign tokens."""
    pem = public_pem(rsa_key)
    document = json.dumps({"kty": "oct", "k": base64url(SECRET.encode())})

    for secret in (pem, document, ""):
        problems = problems_of(secrets=(SECRET, secret))
        assert problems == (
            "BRIDGE_JWT_SECRET: secret number 2 is empty, or a public key or JWK, "
            "which is not secret"
        )


def test_a_short_secret_is_refused_without_being_quoted() -> None:
    """RFC 7518 section 3.2 requires a length; all problems are reported together."""
    problems = problems_of(
        algorithms=("HS256", "HS512", "RS256"),
        secrets=("x" * 40, "y" * 20),
        public_key="rubbish",
    )

    assert problems.splitlines() == [
        "BRIDGE_JWT_SECRET: secret number 1 is too short for HS512 (RFC 7518 section 3.2)",
        "BRIDGE_JWT_SECRET: secret number 2 is too short for HS256 (RFC 7518 section 3.2)",
        "BRIDGE_JWT_PUBLIC_KEY: is not a readable public key in PEM",
    ]


# --- key sets ---------------------------------------------------------------------------


def test_keys_of_a_key_set_are_bound_to_their_algorithms(
    private_keys: dict[str, PrivateKey],
) -> None:
    """An RSA key without `alg` verifies all of RS*; with `alg`, only that one."""
    found = parse_key_set(
        key_set(
            jwk(private_keys["RS256"], kid="any"),
            jwk(private_keys["RS256"], kid="one", alg="RS384", use="sig"),
            jwk(private_keys["ES512"], kid="curve", key_ops=["verify"]),
            jwk(private_keys["EdDSA"]),
        )
    )

    assert [(key.kid, sorted(key.algorithms)) for key in found] == [
        ("any", ["RS256", "RS384", "RS512"]),
        ("one", ["RS384"]),
        ("curve", ["ES512"]),
        (None, ["EdDSA"]),
    ]


def test_unusable_keys_are_skipped_and_the_others_kept(
    private_keys: dict[str, PrivateKey],
) -> None:
    """Issuers publish keys for many purposes, and new kinds before libraries support them."""
    good = jwk(private_keys["ES256"], kid="good")
    weak = jwk(rsa.generate_private_key(65537, 1024))  # noqa: S505 - weak on purpose
    odd: list[object] = [
        None,
        7,
        "key",
        [],
        {},
        {"kty": "oct", "k": base64url(SECRET.encode()), "alg": "HS256"},
        {"kty": ["RSA"]},
        {"kty": "RSA", "n": 7, "e": "AQAB"},
        {"kty": "RSA", "n": "!!", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": ["P-256"]},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
        weak,
        good | {"d": "AA"},
        good | {"use": "enc"},
        good | {"use": None},
        good | {"key_ops": ["encrypt"]},
        good | {"alg": "RS256"},
        good | {"alg": "HS256"},
        good | {"alg": ["ES256"]},
    ]

    found = parse_key_set(key_set(*odd, good))

    assert [key.kid for key in found] == ["good"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"[]", "not a key set"),
        (b'{"keys": {}}', "not a key set"),
        (b'{"keys": []}', "none of its 0 keys"),
        (b'{"keys": [{"kty": "oct", "k": "AA"}]}', "none of its 1 keys"),
        (json.dumps({"keys": [1] * 101}).encode(), "101 keys, the limit is 100"),
    ],
)
def test_an_unusable_key_set_is_refused_with_its_problem(
    body: bytes, problem: str
) -> None:
    """An operator reads the text in the log."""
    with pytest.raises(ValueError, match=problem):
        parse_key_set(body)


def test_a_kid_that_is_not_a_string_is_ignored(
    private_keys: dict[str, PrivateKey],
) -> None:
    """The key still verifies tokens without a kid."""
    [found] = parse_key_set(key_set(jwk(private_keys["ES256"], kid=7)))

    assert found.kid is None


@given(st.binary(max_size=200))
def test_any_other_body_raises_value_error(body: bytes) -> None:
    """The fetch handles ValueError only."""
    with pytest.raises(ValueError, match=r"it is|keys"):
        parse_key_set(body)


JWK_VALUES = (
    st.none()
    | st.integers()
    | st.text(max_size=50)
    | st.lists(st.text(max_size=5), max_size=2)
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["kty", "crv", "x", "y", "n", "e", "use", "alg", "kid", "key_ops"]
        ),
        JWK_VALUES
        | st.sampled_from(
            ["RSA", "EC", "OKP", "P-256", "Ed25519", "Ed448", "sig", "AQAB"]
        )
        | st.binary(max_size=64).map(base64url),
    )
)
def test_no_entry_of_a_key_set_disables_the_others(entry: dict[str, object]) -> None:
    """A valid key stays usable next to any other entry."""
    good = {
        "kty": "OKP",
        "crv": "Ed25519",
        "kid": "good",
        "x": base64url(
            bytes.fromhex(
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
            )
        ),
    }

    found = parse_key_set(json.dumps({"keys": [entry, good]}).encode())

    assert found[-1].kid == "good"
