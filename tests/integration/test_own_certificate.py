"""A bridge with a certificate of its own: pages over https, renewals, `check` and `tail`."""

import asyncio
import json
import shutil
import signal
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from bridge.doctor.own_certificate import check_own_certificate
from bridge.doctor.results import CheckResult, CheckStatus
from bridge.enums import ExitCode
from bridge.settings.load import load_settings
from tests.certificates import Authority, Signed
from tests.conftest import eventually
from tests.integration.programs import (
    LIMIT_S,
    RunningProgram,
    command,
    program,
    settings_for_program,
    start,
    token_for,
)
from tests.integration.running import OPERATOR_TOKEN, SECRET, python_client
from tests.local_node import LocalNode
from tests.redis_server import free_port


@dataclass
class Site:
    """An authority, and the two files of a bridge, which a renewal replaces."""

    authority: Authority
    folder: Path

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the bridge."""
        return {
            "tls_cert": str(self.folder / "cert.pem"),
            "tls_key": str(self.folder / "key.pem"),
        }

    @property
    def client(self) -> ssl.SSLContext:
        """A context that trusts the authority."""
        return ssl.create_default_context(cafile=self.authority.cert)

    def install(self, signed: Signed) -> None:
        """Replace the files."""
        shutil.copy(signed.cert, self.folder / "cert.pem")
        shutil.copy(signed.key, self.folder / "key.pem")

    def sign(self, name: str, *, days: float = 90) -> Signed:
        """Create a certificate of 127.0.0.1."""
        return self.authority.sign(name, address="127.0.0.1", days=days)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(Authority(tmp_path, "authority"), tmp_path)
    site.install(site.sign("first"))
    return site


async def presented(running: RunningProgram, context: ssl.SSLContext) -> bytes:
    """Return the certificate that the public port presents, in DER."""
    async with asyncio.timeout(LIMIT_S):
        _, writer = await asyncio.open_connection(
            "127.0.0.1", running.port, ssl=context
        )
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(True)  # noqa: FBT003 - its only form
    writer.transport.abort()
    return certificate


def der(signed: Signed) -> bytes:
    """Return a certificate in DER."""
    return ssl.PEM_cert_to_DER_cert(signed.cert.read_text())


async def results(**settings: object) -> list[CheckResult]:
    """Return the results of `bridge check` for the certificate."""
    given = {"jwt_secret": SECRET, "inbox": "memory:", "port": 0} | settings
    return [found async for found in check_own_certificate(load_settings(given))]


async def test_sighup_replaces_the_certificate_and_keeps_the_old_one_if_it_is_wrong(
    broker: LocalNode, namespace: str, site: Site
) -> None:
    """A renewal ends no window, and a mistake in it does not end the service."""
    token = token_for("ann", **settings_for_program(broker, namespace))
    first, second = site.sign("first"), site.sign("second")
    site.install(first)
    async with (
        program(broker, namespace, **site.settings) as running,
        python_client(connector=aiohttp.TCPConnector(ssl=site.client)) as page,
    ):
        assert running.public_url.startswith("https://127.0.0.1:")
        received: list[object] = []
        page.on("message", lambda data, _position: received.append(data))
        await page.connect(
            running.public_url, auth={"token": token}, transports=["websocket"]
        )
        assert await presented(running, site.client) == der(first)

        (site.folder / "cert.pem").write_bytes(second.cert.read_bytes())
        running.process.send_signal(signal.SIGHUP)
        line = await running.logged("settings.reload_refused")
        assert "does not belong to the first certificate" in str(line["problems"])
        assert await presented(running, site.client) == der(first)

        site.install(second)
        running.process.send_signal(signal.SIGHUP)
        await running.logged("certificate.replaced")
        await running.logged("settings.reloaded")
        assert await presented(running, site.client) == der(second)

        publish = settings_for_program(
            broker, namespace, operator_port=running.operator_url.rpartition(":")[2]
        )
        assert (await command("publish", "ann", "1", **publish)).code == 0
        await eventually(lambda: received == [1])
        assert page.connected


async def test_tail_and_check_use_the_certificate_of_the_bridge_on_this_machine(
    broker: LocalNode, namespace: str, site: Site
) -> None:
    """Its name is that of the site, and the authority of it may be private."""
    site.install(site.authority.sign("push.example"))
    given = site.settings | {"port": str(free_port())}
    async with program(broker, namespace, **given) as running:
        settings = settings_for_program(
            broker,
            namespace,
            operator_port=running.operator_url.rpartition(":")[2],
            **given,
        )
        tail = await start("tail", "ann", "--json", **settings)
        assert tail.stderr is not None
        assert tail.stdout is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                assert b"connected" in await tail.stderr.readline()
                done = await command("publish", "ann", "1", **settings)
                assert done.code == 0, done.err
                assert json.loads(await tail.stdout.readline())["data"] == 1
        finally:
            tail.send_signal(signal.SIGINT)
            await tail.communicate()

        check = await command("check", "--json", **settings)
        found = [json.loads(line) for line in check.out.splitlines()]
        of_port = next(each for each in found if each["subject"] == "BRIDGE_PORT")
        assert of_port["text"].startswith("the running bridge listens on ")


async def test_check_reports_that_the_running_bridge_has_not_read_a_renewal(
    broker: LocalNode, namespace: str, site: Site
) -> None:
    """The renewal program did not send SIGHUP: the old certificate ends one day."""
    port = free_port()
    settings = site.settings | {"port": str(port)}
    async with program(broker, namespace, **settings):
        (same,) = await results(**settings)
        assert same.status is CheckStatus.OK
        site.install(site.sign("second"))

        ends, differs = await results(**settings)

    assert ends.status is CheckStatus.OK
    assert differs.status is CheckStatus.WARN
    assert "the running bridge presents another one" in differs.text
    assert "SIGHUP" in differs.fix


@pytest.mark.parametrize(
    ("days", "status", "text"),
    [
        (90, CheckStatus.OK, "ends in "),
        (20, CheckStatus.WARN, "ends in "),
        (5, CheckStatus.FAIL, "ends in "),
        (-2, CheckStatus.FAIL, "ended 2.0 days ago"),
    ],
)
async def test_check_reports_the_end_of_the_certificate(
    site: Site, days: float, status: CheckStatus, text: str
) -> None:
    """In time for a renewal."""
    site.install(site.sign("first", days=days))
    (found,) = await results(**site.settings)

    assert (found.status, found.text[: len(text)]) == (status, text)
    assert status is CheckStatus.OK or "renew it" in found.fix


async def test_check_reports_files_that_do_not_fit_together(site: Site) -> None:
    """The fix prints what the two files have, as OpenSSL sees them."""
    (site.folder / "key.pem").write_bytes(site.sign("other").key.read_bytes())
    (found,) = await results(**site.settings)

    assert found.status is CheckStatus.FAIL
    assert "does not belong to the first certificate" in found.text
    assert found.exit_code == ExitCode.USAGE
    assert "openssl pkey -pubout -in" in found.fix


async def test_without_a_certificate_there_is_nothing_to_check() -> None:
    """A proxy has it."""
    assert await results() == []


async def test_a_certificate_that_cannot_be_used_refuses_the_start(site: Site) -> None:
    """With exit status 2, so that systemd does not try again and again."""
    (site.folder / "key.pem").unlink()
    run = await command(
        "run", jwt_secret=SECRET, inbox="memory:", port="0", **site.settings
    )

    assert run.code == ExitCode.USAGE
    assert "BRIDGE_TLS_KEY: " in run.err
    assert "cannot be read: No such file or directory" in run.err
    assert "Traceback" not in run.err


async def test_the_end_of_the_certificate_is_a_metric(
    broker: LocalNode, namespace: str, site: Site
) -> None:
    """For an alert, also if a renewal was refused or never read."""
    headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    async with (
        program(broker, namespace, **site.settings) as running,
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{running.operator_url}/metrics") as response,
    ):
        lines = (await response.text()).splitlines()
    name = "bridge_certificate_end_seconds "
    (end_s,) = [float(line[len(name) :]) for line in lines if line.startswith(name)]
    assert 89 < (end_s - time.time()) / 86400 < 91
