"""Which keys may check what, and which are turned away at the start."""

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


# --- the operator's keys ----------------------------------------------------------------


def test_each_kind_of_key_serves_its_own_algorithms(
    private_keys: dict[str, PrivateKey],
) -> None:
    """The binding that makes a confusion of algorithms impossible."""
    for algorithm, key in private_keys.items():
        bound = load_public_key(public_pem(key), algorithms=[algorithm]).algorithms
        assert algorithm in bound
        assert {name[:2] for name in bound} == {algorithm[:2]}


def test_a_weak_rsa_key_is_refused_at_the_start() -> None:
    """RFC 7518 section 3.3 asks for 2048 bits; finding out later helps nobody."""
    weak = public_pem(rsa.generate_private_key(65537, 1024))  # noqa: S505 - weak on purpose

    assert "has 1024 bits, RSA needs 2048" in pem_problem(weak)


def test_a_private_key_is_refused_by_its_name(rsa_key: PrivateKey) -> None:
    """It would work, and lie about where it need not be."""
    pem = rsa_key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    ).decode()

    assert "is a private key" in pem_problem(pem)


def test_a_certificate_is_refused_with_the_way_out() -> None:
    """People have certificates; one command makes a key of them."""
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
def test_what_is_no_key_is_refused(pem: str) -> None:
    """A truncated paste is the usual case."""
    assert "not a public key in PEM" in pem_problem(pem)


def test_a_key_that_fits_no_accepted_algorithm_is_refused(
    private_keys: dict[str, PrivateKey],
) -> None:
    """Such settings could let nobody in: they contradict themselves."""
    pem = public_pem(private_keys["ES384"])

    assert "fits ES384, but BRIDGE_JWT_ALGORITHMS has RS256" in pem_problem(
        pem, "RS256"
    )


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256K1()),
        dsa.generate_private_key(1024),  # noqa: S505 - made to be refused, and quickly
    ],
    ids=["a curve without algorithm", "a kind without algorithm"],
)
def test_a_key_of_a_foreign_kind_is_refused(
    key: ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey,
) -> None:
    """It is a key, just not for tokens."""
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    assert "of a kind that no algorithm" in pem_problem(pem.decode())


def test_both_edwards_curves_serve_eddsa() -> None:
    """EdDSA names them both (RFC 8037)."""
    assert algorithms_of(ed448.Ed448PrivateKey.generate().public_key()) == {"EdDSA"}
    assert algorithms_of("no key at all") == frozenset()


def test_a_public_key_is_not_looked_at_when_only_secrets_are_accepted() -> None:
    """It plays no part then; settings may be prepared ahead of a change."""
    TokenVerifier(
        TokenRules(algorithms=("HS256",), secrets=(SECRET,), public_key="rubbish")
    )


def test_secrets_that_everybody_may_know_are_refused(rsa_key: PrivateKey) -> None:
    """A public key as secret is the forgery of all forgeries, made by the operator."""
    pem = public_pem(rsa_key)
    document = json.dumps({"kty": "oct", "k": base64url(SECRET.encode())})

    for secret in (pem, document, ""):
        told = problems_of(secrets=(SECRET, secret))
        assert told == (
            "BRIDGE_JWT_SECRET: secret number 2 is empty, or a public key or JWK, "
            "which everybody may know"
        )


def test_a_short_secret_is_refused_without_being_told() -> None:
    """RFC 7518 section 3.2; and all problems come at once."""
    told = problems_of(
        algorithms=("HS256", "HS512", "RS256"),
        secrets=("x" * 40, "y" * 20),
        public_key="rubbish",
    )

    assert told.splitlines() == [
        "BRIDGE_JWT_SECRET: secret number 1 is too short for HS512 (RFC 7518 section 3.2)",
        "BRIDGE_JWT_SECRET: secret number 2 is too short for HS256 (RFC 7518 section 3.2)",
        "BRIDGE_JWT_PUBLIC_KEY: is not a public key in PEM that can be read",
    ]


# --- key sets ---------------------------------------------------------------------------


def test_a_key_set_gives_keys_bound_to_what_they_may_serve(
    private_keys: dict[str, PrivateKey],
) -> None:
    """An RSA key without `alg` serves all of RS*; with it, that one alone."""
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


def test_odd_keys_are_left_out_and_take_no_other_along(
    private_keys: dict[str, PrivateKey],
) -> None:
    """Issuers publish keys for many purposes, and new kinds before we know them."""
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
        (json.dumps({"keys": [1] * 101}).encode(), "101 keys, allowed are 100"),
    ],
)
def test_what_is_no_usable_key_set_says_so(body: bytes, problem: str) -> None:
    """The text is what the operator reads in the log."""
    with pytest.raises(ValueError, match=problem):
        parse_key_set(body)


def test_a_kid_that_is_no_string_names_nothing(
    private_keys: dict[str, PrivateKey],
) -> None:
    """The key still serves tokens that name none."""
    [found] = parse_key_set(key_set(jwk(private_keys["ES256"], kid=7)))

    assert found.kid is None


@given(st.binary(max_size=200))
def test_no_answer_whatsoever_raises_anything_but_value_error(body: bytes) -> None:
    """The fetch turns that, and nothing else, into "unavailable"."""
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
def test_no_entry_of_a_key_set_takes_the_others_along(entry: dict[str, object]) -> None:
    """Whatever an issuer publishes beside it, a good key stays good."""
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
