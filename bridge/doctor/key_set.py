"""Check the issuer's key set."""

from typing import Final

from bridge.auth.key_set import KeySet, KeySetTimes
from bridge.doctor.results import CheckResult, fail, ok, warn
from bridge.enums import ExitCode
from bridge.errors import KeysUnavailableError
from bridge.settings.model import Settings


async def check_key_set(settings: Settings) -> CheckResult | None:
    """Fetch the key set as the first token would; `None` if no URL is configured."""
    if settings.jwks_url is None or settings.auth != "jwt":
        return None
    # No pause: a key that is missing is looked up at once, and its absence is certain.
    keys = KeySet(settings.jwks_url, times=KeySetTimes(pause_s=0.0))
    await keys.open()
    try:
        keys.check()
        counts = {
            name: len(await keys.find(name, kid=None))
            for name in settings.token_algorithms
            if not name.startswith("HS")
        }
    except KeysUnavailableError as exc:
        return fail("key set", str(exc), fix=_FETCH_FIX, exit_code=ExitCode.UNREACHABLE)
    finally:
        await keys.close()
    without = [name for name, count in counts.items() if not count]
    if settings.jwt_algorithms and without:
        text = f"holds no key for {', '.join(without)} of BRIDGE_JWT_ALGORITHMS"
        fix = "omit BRIDGE_JWT_ALGORITHMS, to accept the algorithms of the keys"
        return fail("key set", text, fix=fix)
    if not counts:
        text = "is not used: BRIDGE_JWT_ALGORITHMS accepts tokens of BRIDGE_JWT_SECRET only"
        return warn(
            "key set", text, fix="omit BRIDGE_JWT_ALGORITHMS or BRIDGE_JWKS_URL"
        )
    shown = ", ".join(f"{count} for {name}" for name, count in counts.items() if count)
    return ok("key set", f"fetched; keys: {shown}")


_FETCH_FIX: Final = (
    'curl -sS "$BRIDGE_JWKS_URL"   # must return the key set from this machine'
)
