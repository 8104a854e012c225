"""
Verifies a token and returns the identity of its user.

The order is fixed: size, header, choice of the keys, signature, claims. A token that fails
one step never reaches the next one, so nothing unverified is interpreted. A token that passed
all steps is known from then on (`known_tokens.py`): when it is presented again, only
signature, `aud` and `iss` are not checked again.
"""

import binascii
import time
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import jwt
import orjson
from jwt.types import Options

from bridge.auth.key_set import KeySet
from bridge.auth.keys import (
    PublicKey,
    VerifyingKey,
    is_symmetric,
    load_public_key,
    secret_problems,
)
from bridge.auth.known_tokens import KnownTokens, VerifiedToken
from bridge.core.identity import Identity, identify
from bridge.enums import Refusal
from bridge.errors import ConfigError, RefusedError

# Identity providers list groups and roles in tokens.
_TOKEN_MAX_CHARACTERS: Final = 16_384

# Texts of the library may quote the token; these do not. The first match applies.
_PROBLEMS: Final = (
    (
        jwt.MissingRequiredClaimError,
        "a required claim is missing: exp, aud or iss",
    ),
    (jwt.InvalidAudienceError, "claim aud is not accepted here"),
    (jwt.InvalidIssuerError, "claim iss is not accepted here"),
    (jwt.InvalidAlgorithmError, "its algorithm is not accepted here"),
)


@dataclass(frozen=True, slots=True)
class TokenRules:
    """
    The conditions that a token must meet, from the settings.

    Attributes:
        algorithms: The accepted algorithms; the header of a token cannot add one.
        secrets: For HS*; several during a rotation. The first one signs.
        public_key: PEM, for RS*, ES* and EdDSA.
        audience: If not empty, `aud` must contain one of these.
        issuer: If not ``None``, `iss` must be equal.
        leeway_s: Tolerance for clock differences in the checks of `exp` and `nbf`.

    """

    algorithms: tuple[str, ...]
    secrets: tuple[str, ...] = field(default=(), repr=False)
    public_key: str | None = field(default=None, repr=False)
    audience: tuple[str, ...] = ()
    issuer: str | None = None
    leeway_s: float = 10.0


class TokenVerifier:
    """Verifies tokens by rules that can be replaced while the bridge runs."""

    def __init__(self, rules: TokenRules, key_set: KeySet | None = None) -> None:
        """
        Use `rules`; `key_set` provides keys for the asymmetric algorithms.

        Raises:
            ConfigError: If a key of the rules is invalid.

        """
        self._key_set = key_set
        self._verifying_key: VerifyingKey | None = None
        self.replace_rules(rules)

    async def open(self) -> None:
        """Fetch the key set, if there is one. A failed fetch is logged, not raised."""
        if self._key_set:
            await self._key_set.open()

    async def close(self) -> None:
        """Close the connections of the key set."""
        if self._key_set:
            await self._key_set.close()

    def replace_rules(self, rules: TokenRules) -> None:
        """
        Verify later tokens by `rules`.

        Raises:
            ConfigError: If a key of `rules` is invalid. The old rules stay in force.

        """
        problems = secret_problems(rules.secrets, algorithms=rules.algorithms)
        asymmetric = [name for name in rules.algorithms if not is_symmetric(name)]
        verifying_key = None
        if rules.public_key is not None and asymmetric:
            try:
                verifying_key = load_public_key(rules.public_key, algorithms=asymmetric)
            except ConfigError as exc:
                problems += exc.problems
        if problems:
            raise ConfigError(problems)
        self._rules = rules
        self._known = KnownTokens(leeway_s=rules.leeway_s)
        self._secrets = [secret.encode() for secret in rules.secrets]
        self._verifying_key = verifying_key

    async def verify(self, token: object) -> Identity:
        """
        Return the identity of a valid token.

        Args:
            token: Any value that a client sent, of any type.

        Raises:
            RefusedError: If the token is missing or invalid, with the code for the page.
            KeysUnavailableError: If the key is unknown and cannot be looked up now.

        Cancellation: safe.

        """
        if token is None or token == "":
            raise RefusedError(Refusal.TOKEN_MISSING)
        if not isinstance(token, str) or not token.isascii():
            raise _invalid("it is not text in ASCII")
        if len(token) > _TOKEN_MAX_CHARACTERS:
            raise _invalid(f"it is longer than {_TOKEN_MAX_CHARACTERS} characters")
        algorithm, kid = _parse_header(token.partition(".")[0])
        # A reload may replace the rules during the await below: use one set for all checks,
        # and the tokens that are known by it.
        rules, known = self._rules, self._known
        if algorithm not in rules.algorithms:
            raise _invalid("its algorithm is not accepted here")
        if self._key_set is None or is_symmetric(algorithm) or self._verifying_key:
            keys = self._configured_keys(algorithm)
            identity = _find_or_check(token, algorithm, keys, rules, known)
        else:
            keys = await self._key_set.find(algorithm, kid=kid)
            identity = _find_or_check(token, algorithm, keys, rules, known)
            if identity is None and kid is None:  # its key may be newer than the set
                keys = await self._key_set.find(algorithm, kid=None, tried=keys)
                identity = _find_or_check(token, algorithm, keys, rules, known)
        if identity is None:
            raise _invalid("its signature matches none of the keys")
        return identity

    def _configured_keys(self, algorithm: str) -> Sequence[PublicKey | bytes]:
        if is_symmetric(algorithm):
            return self._secrets
        if self._verifying_key and algorithm in self._verifying_key.algorithms:
            return [self._verifying_key.key]
        return []


def _invalid(problem: str) -> RefusedError:
    return RefusedError(Refusal.TOKEN_INVALID, f"the token was not accepted: {problem}")


@lru_cache(maxsize=64)  # the tokens of an issuer have the same header
def _parse_header(segment: str) -> tuple[str, str | None]:
    """
    Return `alg` and `kid` of a token's header, which only select a configured key.

    Headers that name other keys (`jku`, `x5u`, `x5c`, `jwk`) are ignored.
    """
    try:
        header = orjson.loads(urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (binascii.Error, orjson.JSONDecodeError) as exc:
        raise _invalid("it is not a JWT, its header cannot be read") from exc
    algorithm = header.get("alg") if isinstance(header, dict) else None
    if not isinstance(algorithm, str):
        raise _invalid("its header names no algorithm")
    if "crit" in header or "b64" in header:
        # RFC 7515 section 4.1.11: a critical extension that is not supported must be refused.
        raise _invalid("its header requires an extension")
    kid = header.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise _invalid("its header has a kid that is not a string")
    return algorithm, kid


def _find_or_check(
    token: str,
    algorithm: str,
    keys: Sequence[PublicKey | bytes],
    rules: TokenRules,
    known: KnownTokens,
) -> Identity | None:
    """Return the identity of the token; ``None`` if none of `keys` signed it."""
    now_s = time.time()
    identity = known.find(token, keys, now_s=now_s)
    if identity is not None:
        return identity
    verified = _check(token, algorithm, keys, rules)
    if verified is None:
        return None
    known.add(token, verified, now_s=now_s)
    return verified.identity


def _check(
    token: str, algorithm: str, keys: Sequence[PublicKey | bytes], rules: TokenRules
) -> VerifiedToken | None:
    """Verify the token completely; return ``None`` if none of `keys` signed it."""
    options: Options = {
        "require": ["exp"],
        "verify_aud": bool(rules.audience),
        "verify_sub": False,  # `identify` accepts numbers, too
        "enforce_minimum_key_length": True,
    }
    for key in keys:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                options=options,
                audience=rules.audience or None,
                issuer=rules.issuer,
                leeway=rules.leeway_s,
            )
        except jwt.InvalidSignatureError:
            continue  # try the next secret: one may be in rotation
        except jwt.ExpiredSignatureError as exc:
            raise RefusedError(Refusal.TOKEN_EXPIRED) from exc
        except jwt.ImmatureSignatureError as exc:
            raise RefusedError(Refusal.TOKEN_NOT_YET_VALID) from exc
        except jwt.PyJWTError as exc:
            raise _invalid(_problem_of(exc)) from exc
        return VerifiedToken(identify(claims), key, _not_before_s(claims))
    return None


def _not_before_s(claims: Mapping[str, Any]) -> int:
    """Return the later one of `nbf` and `iat`, which the library found to be numbers."""
    return max(int(claims.get("nbf", 0)), int(claims.get("iat", 0)))


def _problem_of(error: jwt.PyJWTError) -> str:
    for kind, problem in _PROBLEMS:
        if isinstance(error, kind):
            return problem
    return "it cannot be read"
