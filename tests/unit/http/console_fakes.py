"""The console in front of a small API, and helpers to sign in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import ClientResponse, web

from bridge.http.authentication import KeyAttempts, Keys, guarded
from bridge.http.console.sessions import Sessions
from bridge.http.console.sign_in import SignIn, add_console_routes
from bridge.http.responses import answer_with_problems, harden
from bridge.trusted_proxies import TrustedProxies
from tests.clock import Clock
from tests.unit.http.conftest import Client

TOKEN = "the-operator-token"


OWN = {"X-Bridge-Console": "1"}


@dataclass
class FakeConsole:
    """A console in front of one operation that reads and one that changes."""

    clock: Clock = field(default_factory=Clock)
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    changes: int = 0

    def __post_init__(self) -> None:
        """Build the sign-in under test."""
        attempts = KeyAttempts(self.proxies, clock=self.clock)
        self.keys = Keys([TOKEN], setting="TOKEN", attempts=attempts)
        sessions = Sessions(clock=self.clock)
        self.sign_in = SignIn(self.keys, self.proxies, sessions)

    def app(self) -> web.Application:
        """Build the application."""
        sign_in = self.sign_in

        async def change(_request: web.Request) -> web.Response:
            self.changes += 1
            return web.Response()

        async def read(_request: web.Request) -> web.Response:
            return web.Response()

        app = web.Application(middlewares=[answer_with_problems], client_max_size=0)
        app.on_response_prepare.append(harden)
        app.router.add_get("/api/thing", guarded(sign_in, read))
        app.router.add_post("/api/thing", guarded(sign_in, change))
        add_console_routes(app, sign_in)
        return app


async def try_token(
    client: Client, token: object = TOKEN, headers: Mapping[str, str] = OWN
) -> ClientResponse:
    """Try to sign in with `token`."""
    return await client.post("/console/session", json={"token": token}, headers=headers)


async def cookie(client: Client) -> dict[str, str]:
    """Sign in and return the cookie as a browser sends it."""
    response = await try_token(client)
    assert response.status == 204
    (morsel,) = response.cookies.values()
    return {"Cookie": f"{morsel.key}={morsel.value}"}
