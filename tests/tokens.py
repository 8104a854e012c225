"""Good and bad tokens, and the keys that they are signed with."""

import json
import time
from base64 import urlsafe_b64encode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SECRET = "a-secret-of-64-bytes-or-more-serves-each-of-the-three-HS-algorithms"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def public_pem(key: PrivateKey) -> str:
    """Return the public half of `key` as an operator would paste it."""
    public = key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def base64url(raw: bytes) -> str:
    """Encode as a token's segments are."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def segment(value: object) -> str:
    """Return `value` as a token's header or claims."""
    return base64url(json.dumps(value).encode())


def claims(**changes: object) -> dict[str, object]:
    """Return good claims with `changes`; ``None`` takes a claim out."""
    good: dict[str, object] = {"sub": "alice", "exp": int(time.time()) + 600}
    good.update(changes)
    return {name: value for name, value in good.items() if value is not None}


def token(**changes: object) -> str:
    """Return a token that SECRET signs with HS256, with `changes` to good claims."""
    return jwt.encode(claims(**changes), SECRET, algorithm="HS256")
