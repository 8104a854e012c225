"""Tokens, key sets and the headers that carry tokens, against PyJWT."""

import hmac
import json
from base64 import urlsafe_b64encode
from contextlib import suppress
from hashlib import sha256
from time import time
from typing import Final

import jwt

from bridge.auth.jwt import TokenRules, TokenVerifier
from bridge.auth.keys import parse_key_set
from bridge.core.identity import cookie_value, request_token
from bridge.errors import RefusedError
from tests.fuzz.harness import Choices, run

MODULES: Final = ("bridge.auth.jwt", "bridge.auth.keys", "bridge.core.identity")
_SECRET: Final = b"0123456789abcdefghijklmnopqrstuv"
_VERIFIER: Final = TokenVerifier(
    TokenRules(algorithms=("HS256",), secrets=(_SECRET.decode(),))
)
_HEADER: Final = b'{"alg":"HS256","typ":"JWT"}'
_RSA: Final = b'{"keys":[{"kty":"RSA","n":"%b","e":"AQAB","kid":"a"}]}' % (b"z" * 342)


def _part(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


def _signed(header: bytes, claims: bytes) -> str:
    text = _part(header) + b"." + _part(claims)
    return (text + b"." + _part(hmac.new(_SECRET, text, sha256).digest())).decode()


SEEDS: Final = (
    b"\x00" + _signed(_HEADER, b'{"sub":"ann","exp":9999999999}').encode(),
    b"\x01" + _HEADER,
    b'\x01{"alg":"none","crit":["exp"],"b64":false,"kid":"a"}',
    b'\x01{"alg":"HS256","kid":1,"x":' + b"[" * 1000 + b"]" * 1000 + b"}",
    b'\x02{"sub":"ann","exp":9999999999,"nbf":1,"iat":1.5,"aud":"x","iss":["y"]}',
    b'\x02{"sub":7,"exp":1e400}',
    b'\x02{"sub":"\\ud800","exp":-1}',
    b'\x02{"sub":"a","exp":9999999999,"jti":{},"iat":null}',
    b"\x03" + _RSA,
    b'\x03{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"OKP","crv":"Ed25519","x":"AA"}]}',
    b'\x03{"keys":[{"kty":"oct","k":"AA","key_ops":["verify"],"use":"enc"},[],{"d":1}]}',
    b"\x04Bearer a.b.c",
    b'\x04x=y; token="a.b.c"; token=second',
)


def fuzz_one(data: bytes) -> None:
    """A refusal is the only error; what is accepted has a valid signature."""
    choices = Choices(data)
    kind = choices.number(5)
    raw = choices.rest()
    if kind == 0:
        _verify(raw.decode("latin-1"))
    elif kind == 1:
        _verify(_signed(raw, b'{"sub":"ann","exp":9999999999}'))
    elif kind == 2:
        _verify(_signed(_HEADER, raw))
    elif kind == 3:
        with suppress(ValueError):
            for key in parse_key_set(raw):
                assert key.algorithms
    else:
        header = raw.decode(errors="surrogateescape")
        for found in (
            cookie_value(header, "token"),
            request_token(header, header, "token"),
        ):
            assert found is None or found in header
            if found is not None:
                _verify(found)


def _verify(token: str) -> None:
    try:
        identity = run(_VERIFIER.verify(token))
    except RefusedError as exc:
        str(exc).encode()
        return
    claims = jwt.decode(
        token,
        _SECRET,
        algorithms=["HS256"],
        options={"verify_sub": False, "verify_aud": False},
        leeway=10,
    )
    assert identity.user == str(claims["sub"])
    assert identity.expires_s is not None
    assert identity.expires_s > time() - 11
    json.dumps(identity.user).encode()
