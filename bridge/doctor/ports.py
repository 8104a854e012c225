"""The addresses of the two doors: whether a bridge that is started now would get them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
from yarl import URL

from bridge.doctor.peers import reachable_host
from bridge.doctor.results import Finding, ok, wrong
from bridge.http.listeners import address_error
from bridge.settings.model import Settings

_WITHIN_S: Final = 5.0


async def port_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Try both addresses without listening; what a bridge has already is well."""
    doors = (
        ("BRIDGE_PORT", settings.host, settings.port),
        ("BRIDGE_OPERATOR_PORT", settings.operator_host, settings.operator_port),
    )
    for setting, host, port in doors:
        if port:  # 0 is any free one
            yield await _finding(setting, host, port)


async def _finding(setting: str, host: str, port: int) -> Finding:
    try:
        await asyncio.to_thread(_try, host, port)
    except OSError as exc:
        if await _is_bridge(host, port):
            return ok(setting, f"a bridge listens on {host}:{port} already")
        told = str(address_error(exc, setting, host, port))
        subject, _, text = told.partition(": ")  # the host's setting, if that is wrong
        return wrong(subject, text)
    return ok(setting, f"{host}:{port} is free")


def _try(host: str, port: int) -> None:
    """Take the address as the server would, and let go: nobody else is in its way."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            # A port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)


async def _is_bridge(host: str, port: int) -> bool:
    url = URL.build(
        scheme="http", host=reachable_host(host), port=port, path="/health/live"
    )
    try:
        async with (
            asyncio.timeout(_WITHIN_S),
            aiohttp.ClientSession() as session,
            session.get(url) as response,
        ):
            return response.headers.get("Server") == "bridge"
    except (aiohttp.ClientError, TimeoutError):
        return False
