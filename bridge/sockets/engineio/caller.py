"""Who opens a session, as far as its first HTTP request tells."""

from dataclasses import dataclass

from bridge.core.identity import cookie_value


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Who opens a session, from the headers of its first request.

    Attributes:
        address: Where the page is, as far as it can be believed.
        is_origin_allowed: Whether pages of this origin may connect; if not, the session
            lives just long enough to be told so.
        authorization: That header, if there was one.
        cookies: The header `Cookie`, if there was one.
        origin: The header `Origin`, if there was one.

    """

    address: str
    is_origin_allowed: bool
    authorization: str | None = None
    cookies: str | None = None
    origin: str | None = None

    def token(self, cookie: str) -> str | None:
        """Return the token that came with the request: bearer, or that `cookie`."""
        scheme, _, bearer = (self.authorization or "").partition(" ")
        if scheme.lower() == "bearer" and bearer.strip():
            return bearer.strip()
        return cookie_value(self.cookies, cookie) if self.cookies else None
