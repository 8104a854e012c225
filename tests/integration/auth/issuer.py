"""An HTTP server of a key set, which tests can rotate, redirect, block and stop."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from tests.tokens import claims

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
OLD_KEY = ec.generate_private_key(ec.SECP256R1())
NEW_KEY = ec.generate_private_key(ec.SECP256R1())


@dataclass
class Issuer:
    """A server of a key set; `answer` can be replaced while it runs."""

    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)
    answer: Answer | None = None
    requests: int = 0
    url: str = ""
    _runner: web.AppRunner | None = None
    _port: int = 0

    async def start(self) -> None:
        """Start the server; after a `stop`, on the same port."""
        app = web.Application()
        app.router.add_get("/keys", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/keys"

    async def stop(self) -> None:
        """Stop the server: connections are refused."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        return await (self.answer or self.serve)(request)

    async def serve(self, _: web.Request) -> web.StreamResponse:
        """Answer with the public parts of `keys`."""
        entries = [
            ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid}
            for kid, key in self.keys.items()
        ]
        return web.json_response({"keys": entries})


class BlockedAnswer:
    """An answer that waits until the test releases it; status 500 unless `then` is given."""

    def __init__(self, then: Answer | None = None) -> None:
        self.asked = asyncio.Event()
        self.released = asyncio.Event()
        self._then = then

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Wait for `released`, then answer."""
        self.asked.set()
        await self.released.wait()
        return await self._then(request) if self._then else web.Response(status=500)


def token(key: ec.EllipticCurvePrivateKey, kid: str | None) -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode(claims(), key, algorithm="ES256", headers=headers)
