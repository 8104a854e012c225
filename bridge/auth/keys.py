"""
Which key may check which token.

A key is bound to algorithms by what it is: a secret to HS*, an RSA key to RS*, a curve to
its ES*, an Edwards key to EdDSA. So a public key can never be taken for a secret, which
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
    A public key and what it may be used for.

    Attributes:
        key: The key itself.
        algorithms: The only algorithms whose signatures it may check.
        kid: Its name in a key set; ``None`` if it has none.

    """

    key: PublicKey
    algorithms: frozenset[str]
    kid: str | None = None


def is_symmetric(algorithm: str) -> bool:
    """Whether signing and checking take the same secret."""
    return algorithm.startswith("HS")


def algorithms_of(key: object) -> frozenset[str]:
    """Return the algorithms that `key` may serve by its kind; none if it is no public key."""
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
    Read BRIDGE_JWT_PUBLIC_KEY.

    Args:
        pem: The text of the setting; never quoted in an error.
        algorithms: What the settings accept; the key must fit one of them.

    Raises:
        ConfigError: If it is not a public key, too weak, or fits none of `algorithms`.

    """
    if "PRIVATE KEY-----" in pem:
        problem = (
            "is a private key, which does not belong here; expected the public one"
        )
    elif "-----BEGIN CERTIFICATE" in pem:
        problem = "is a certificate, expected a public key: openssl x509 -pubkey -noout -in FILE"
    else:
        try:
            key = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm) as exc:
            # The library's text may hold bytes of the file.
            message = "is not a public key in PEM that can be read"
            raise ConfigError([f"BRIDGE_JWT_PUBLIC_KEY: {message}"]) from exc
        return _checked(key, algorithms)
    raise ConfigError([f"BRIDGE_JWT_PUBLIC_KEY: {problem}"])


def _checked(key: object, algorithms: Sequence[str]) -> VerifyingKey:
    if not isinstance(key, PublicKey) or not algorithms_of(key):
        problem = "is of a kind that no algorithm of BRIDGE_JWT_ALGORITHMS uses"
    elif weakness := _weakness(key):
        problem = weakness
    elif algorithms_of(key).isdisjoint(algorithms):
        problem = (
            f"fits {', '.join(sorted(algorithms_of(key)))}, "
            f"but BRIDGE_JWT_ALGORITHMS has {', '.join(algorithms)}"
        )
    else:
        return VerifyingKey(key=key, algorithms=algorithms_of(key))
    raise ConfigError([f"BRIDGE_JWT_PUBLIC_KEY: {problem}"])


def _weakness(key: PublicKey) -> str | None:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_MIN_BITS:
        return f"has {key.key_size} bits, RSA needs {_RSA_MIN_BITS}"
    return None


def secret_problems(secrets: Sequence[str], *, algorithms: Sequence[str]) -> list[str]:
    """Say which of `secrets` cannot serve the HS* among `algorithms`, without quoting them."""
    problems: list[str] = []
    for number, secret in enumerate(secrets, start=1):
        for algorithm in filter(is_symmetric, algorithms):
            checker = get_algorithm_by_name(algorithm)
            try:
                is_short = checker.check_key_length(
                    checker.prepare_key(secret.encode())
                )
            except InvalidKeyError:
                problem = "is empty, or a public key or JWK, which everybody may know"
            else:
                if not is_short:
                    continue
                problem = f"is too short for {algorithm} (RFC 7518 section 3.2)"
            problems.append(f"BRIDGE_JWT_SECRET: secret number {number} {problem}")
            break
    return problems


def parse_key_set(body: bytes) -> list[VerifyingKey]:
    """
    Read a JWK set (RFC 7517 section 5).

    Returns:
        The keys that may check signatures. What is meant for something else, weak,
        secret or unreadable is left out: one odd key must not take the others along.

    Raises:
        ValueError: If it is not a key set, holds too many keys or none that can be used.

    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        message = "it is not JSON"
        raise ValueError(message) from exc
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        message = "it is not a key set: no list named keys"
        raise ValueError(message)  # noqa: TRY004 - the document is wrong, not a type
    if len(entries) > _KEY_SET_MAX_KEYS:
        message = f"it has {len(entries)} keys, allowed are {_KEY_SET_MAX_KEYS}"
        raise ValueError(message)
    keys = [key for entry in entries if (key := _parse_key(entry))]
    if not keys:
        message = f"none of its {len(entries)} keys can check a signature"
        raise ValueError(message)
    return keys


def _parse_key(entry: object) -> VerifyingKey | None:
    # "d" is the private part: a set that publishes it has lost that key.
    if not isinstance(entry, Mapping) or "d" in entry:
        return None
    if entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops")
    if isinstance(operations, list) and "verify" not in operations:
        return None
    try:
        # Without `alg`: what a key may serve follows from its kind, and PyJWT would
        # tie an RSA key to one algorithm, or trip over one it does not know.
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
