"""The operator port behind nginx and HAProxy: each client counts by its own address."""

import re
from functools import partial

import aiohttp
import pytest

from tests.balancers import KINDS, open_balancer
from tests.integration.running import OPERATOR_TOKEN, running_bridge, settings_for
from tests.local_node import LocalNode

PROXY = "127.0.0.1"
ATTACKER = "127.0.0.2"
SPOOFED = "203.0.113.50"  # the address of the operator, which the attacker knows


def edited(kind: str, text: str, *, has_port: bool) -> str:
    """
    Change the shipped configuration to pass every path.

    With `has_port` the client's address has its port, as some proxies of Azure write it.
    """
    if kind == "haproxy":
        text = text.replace("path_beg /socket.io/", "path_beg /")
        name, value = "X-Forwarded-For", "%[src]:%[src_port]"
        return (
            text
            if not has_port
            else re.sub(
                r"(?m)^    default_backend",
                f"    http-request add-header {name} {value}\n    default_backend",
                text.replace("    option forwardfor\n", ""),
            )
        )
    text = text.replace("location /socket.io/ {", "location ~ ^/ {")
    return (
        text
        if not has_port
        else text.replace(
            "$proxy_add_x_forwarded_for",
            '"$http_x_forwarded_for, $remote_addr:$remote_port"',
        )
    )


async def try_token(url: str, token: str, *, peer: str, forged: str = SPOOFED) -> int:
    """Sign in to the console from `peer`, with a forged `X-Forwarded-For`."""
    headers = {"X-Forwarded-For": forged, "X-Bridge-Console": "1"}
    connector = aiohttp.TCPConnector(local_addr=(peer, 0))
    async with (
        aiohttp.ClientSession(headers=headers, connector=connector) as session,
        session.post(f"{url}/console/session", json={"token": token}) as response,
    ):
        return response.status


@pytest.mark.parametrize("has_port", [False, True], ids=["address", "address and port"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_forged_address_neither_evades_pauses_nor_causes_them(
    broker: LocalNode, namespace: str, kind: str, *, has_port: bool
) -> None:
    """HAProxy leaves the client's header line as it is and adds its own after it."""
    edit = partial(edited, kind, has_port=has_port)
    settings = settings_for(broker, namespace, trusted_proxies=PROXY)
    async with running_bridge(settings) as running:
        port = int(running.listening.operator_url.rpartition(":")[2])
        async with open_balancer(kind, bridge_ports=[port], edit=edit) as balancer:
            answers = [
                await try_token(
                    balancer.url,
                    f"guess-{number}",
                    peer=ATTACKER,
                    forged=f"203.0.113.{number}" if number % 2 else SPOOFED,
                )
                for number in range(20)
            ]
            # As from a proxy whose client really has the forged address.
            operator = await try_token(
                running.listening.operator_url, OPERATOR_TOKEN, peer=PROXY
            )

    assert answers == [401] * 5 + [429] * 15
    assert operator == 204
