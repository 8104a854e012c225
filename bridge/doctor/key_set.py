"""Check the issuer's key set."""

from bridge.auth.key_set import KeySet, KeySetTimes
from bridge.doctor.results import CheckResult, fail, ok
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
        key_counts = {
            name: len(await keys.find(name, kid=None))
            for name in settings.jwt_algorithms
            if not name.startswith("HS")
        }
    except KeysUnavailableError as exc:
        return fail("key set", str(exc), exit_code=ExitCode.UNREACHABLE)
    finally:
        await keys.close()
    without = [name for name, count in key_counts.items() if not count]
    if without:
        text = f"holds no key for {', '.join(without)} of BRIDGE_JWT_ALGORITHMS"
        fix = "set BRIDGE_JWT_ALGORITHMS to the algorithms of the issuer"
        return fail("key set", text, fix=fix)
    counts = ", ".join(f"{count} for {name}" for name, count in key_counts.items())
    return ok("key set", f"fetched; keys: {counts}")
