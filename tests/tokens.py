"""Tokens for tests, and the keys that sign them."""

import json
import time
from base64 import urlsafe_b64encode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SECRET = "a-secret-of-64-bytes-or-more-is-valid-for-each-of-the-HS-algorithms"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def public_pem(key: PrivateKey) -> str:
    """Return the public part of `key` as PEM."""
    public = key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def base64url(raw: bytes) -> str:
    """Encode `raw` like a segment of a token."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def segment(value: object) -> str:
    """Return the segment of a header or of claims."""
    return base64url(json.dumps(value).encode())


def claims(**changes: object) -> dict[str, object]:
    """Return valid claims with `changes`; ``None`` removes a claim."""
    valid: dict[str, object] = {"sub": "alice", "exp": int(time.time()) + 600}
    valid.update(changes)
    return {name: value for name, value in valid.items() if value is not None}


def token(**changes: object) -> str:
    """Return a token signed with SECRET and HS256, with `changes` to valid claims."""
    return jwt.encode(claims(**changes), SECRET, algorithm="HS256")
