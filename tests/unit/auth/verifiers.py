"""Verifiers under test, and tokens that no library would sign."""

import hmac
import json
import traceback
from hashlib import sha256

import pytest

from bridge.auth.jwt import TokenRules, TokenVerifier
from bridge.errors import RefusedError
from tests.tokens import (
    SECRET,
    base64url,
    segment,
)

OTHER_SECRET = SECRET[::-1]


def verifier(**rules: object) -> TokenVerifier:
    values: dict[str, object] = {"algorithms": ("HS256",), "secrets": (SECRET,)}
    return TokenVerifier(TokenRules(**(values | rules)))  # type: ignore[arg-type]  # tests mix types on purpose


async def refusal(text: object, **rules: object) -> RefusedError:
    """Return the refusal of `text`, and check that it quotes neither token nor secret."""
    with pytest.raises(RefusedError) as caught:
        await verifier(**rules).verify(text)
    quoted = "".join(traceback.format_exception(caught.value))
    assert SECRET not in quoted
    for part in str(text).split("."):
        assert len(part) < 12 or part not in quoted
    return caught.value


def forge(header: object, body: object, signature: bytes = b"") -> str:
    return f"{segment(header)}.{segment(body)}.{base64url(signature)}"


def sign_anything(header: object, body: str | dict[str, object], secret: str) -> str:
    """Sign a token that PyJWT would refuse to sign."""
    raw = body if isinstance(body, str) else json.dumps(body)
    signed = f"{segment(header)}.{base64url(raw.encode())}"
    signature = hmac.digest(secret.encode(), signed.encode(), sha256)
    return f"{signed}.{base64url(signature)}"
