"""
Which key may verify which algorithm.

The kind of a key determines its algorithms: a secret verifies HS*, an RSA key RS*, a curve
its ES*, an Edwards key EdDSA. A public key can therefore never be used as a secret, which
is the classic way to forge a token (RFC 8725 section 2.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK, get_algorithm_by_name
from jwt.exceptions import InvalidKeyError, PyJWTError

from bridge.errors import ConfigError

PublicKey = (
    rsa.RSAPublicKey
    | ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | ed448.Ed448PublicKey
)

_RSA_MIN_BITS: Final = 2048  # RFC 7518 section 3.3
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512"})
_CURVE_ALGORITHMS: Final = {
    "secp256r1": frozenset({"ES256"}),
    "secp384r1": frozenset({"ES384"}),
    "secp521r1": frozenset({"ES512"}),
}
_KEY_SET_MAX_KEYS: Final = 100


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """
    A public key and its algorithms.

    Attributes:
        key: The key.
        algorithms: The only algorithms whose signatures it may verify.
        kid: Its name in a key set; ``None`` if it has none.

    """

    key: PublicKey
    algorithms: frozenset[str]
    kid: str | None = None


def is_symmetric(algorithm: str) -> bool:
    """Return whether `algorithm` signs and verifies with the same secret."""
    return algorithm.startswith("HS")


def algorithms_of(key: object) -> frozenset[str]:
    """Return the algorithms of this kind of key; empty if it is not a public key."""
    match key:
        case rsa.RSAPublicKey():
            return _RSA_ALGORITHMS
        case ec.EllipticCurvePublicKey():
            return _CURVE_ALGORITHMS.get(key.curve.name, frozenset())
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return frozenset({"EdDSA"})
        case _:
            return frozenset()


def load_public_key(pem: str, *, algorithms: Sequence[str]) -> VerifyingKey:
    """
    Load the key of BRIDGE_JWT_PUBLIC_KEY.

    Args:
        pem: The text of the setting; errors never quote it.
        algorithms: The accepted algorithms; the key must fit one of them.

    Raises:
        ConfigError: If `pem` is not a public key, is too weak, or fits none of
            `algorithms`.

    """
    if "PRIVATE KEY-----" in pem:
        problem = "is a private key; expected the public key"
    elif "-----BEGIN CERTIFICATE" in pem:
        problem = "is a certificate, expected a public key: openssl x509 -pubkey -noout -in FILE"
    else:
        try:
            key = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm) as exc:
            # The text of the library may quote bytes of the file.
            message = "is not a readable public key in PEM"
            raise ConfigError([f"BRIDGE_JWT_PUBLIC_KEY: {message}"]) from exc
        return _checked(key, algorithms)
    raise ConfigError([f"BRIDGE_JWT_PUBLIC_KEY: {problem}"])


def _checked(key: object, algorithms: Sequence[str]) -> VerifyingKey:
    if not isinstance(key, PublicKey) or not algorithms_of(key):
        problem = "is a kind of key that no algorithm for tokens uses"
    elif weakness := _weakness(key):
        problem = weakness
    elif algorithms_of(key).isdisjoint(algorithms):
        problem = (
            f"fits {', '.join(sorted(algorithms_of(key)))}, "
            f"but BRIDGE_JWT_ALGORITHMS has {', '.join(algorithms)}; omit that setting, or "
            "set the key of the issuer"
        )
    else:
        return VerifyingKey(key=key, algorithms=algorithms_of(key))
    raise ConfigError([f"BRIDGE_JWT_PUBLIC_KEY: {problem}"])


def _weakness(key: PublicKey) -> str | None:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_MIN_BITS:
        return f"has {key.key_size} bits, RSA needs {_RSA_MIN_BITS}"
    return None


def secret_problems(secrets: Sequence[str], *, algorithms: Sequence[str]) -> list[str]:
    """Return a problem for each secret that does not suit an HS* of `algorithms`."""
    problems: list[str] = []
    for number, secret in enumerate(secrets, start=1):
        for algorithm in filter(is_symmetric, algorithms):
            checker = get_algorithm_by_name(algorithm)
            try:
                is_short = checker.check_key_length(
                    checker.prepare_key(secret.encode())
                )
            except InvalidKeyError:
                problem = "is empty, or a public key or JWK, which is not secret"
            else:
                if not is_short:
                    continue
                problem = f"is too short for {algorithm} (RFC 7518 section 3.2)"
            problems.append(f"BRIDGE_JWT_SECRET: secret number {number} {problem}")
            break
    return problems


def parse_key_set(body: bytes) -> list[VerifyingKey]:
    """
    Parse a JWK set (RFC 7517 section 5).

    Returns:
        The keys that may verify signatures. Keys for another purpose and keys that are
        weak, secret or unreadable are skipped, so that they do not disable the others.

    Raises:
        ValueError: If `body` is not a key set, has too many keys or no usable one.

    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        message = "it is not JSON"
        raise ValueError(message) from exc
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        message = "it is not a key set: no list named keys"
        raise ValueError(message)  # noqa: TRY004 - the document is invalid, not a type
    if len(entries) > _KEY_SET_MAX_KEYS:
        message = f"it has {len(entries)} keys, the limit is {_KEY_SET_MAX_KEYS}"
        raise ValueError(message)
    keys = [key for entry in entries if (key := _parse_key(entry))]
    if not keys:
        message = f"none of its {len(entries)} keys can verify a signature"
        raise ValueError(message)
    return keys


def _parse_key(entry: object) -> VerifyingKey | None:
    # "d" is the private part: a key that was published with it is compromised.
    if not isinstance(entry, Mapping) or "d" in entry:
        return None
    if entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops")
    if isinstance(operations, list) and "verify" not in operations:
        return None
    try:
        # Without `alg`, because the kind of the key determines its algorithms. PyJWT would
        # bind an RSA key to one algorithm, and fail at an `alg` that it does not know.
        key = PyJWK({k: v for k, v in entry.items() if k != "alg"}).key
    except (PyJWTError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, PublicKey) or _weakness(key):
        return None
    algorithms = algorithms_of(key)
    if "alg" in entry:
        algorithms = frozenset(name for name in algorithms if name == entry["alg"])
    kid = entry.get("kid")
    return (
        VerifyingKey(key, algorithms, kid if isinstance(kid, str) else None)
        if algorithms
        else None
    )
