"""The certificate of the public port: problems name the setting and the file."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.testing import capture_logs

from bridge.errors import ConfigError
from bridge.server_certificate import (
    PortCertificate,
    ServerCertificate,
    context_trusting,
    load_server_certificate,
)
from tests.certificates import Authority, Signed


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def signed(authority: Authority) -> Signed:
    return authority.sign("server", address="127.0.0.1")


def load(cert: Path, key: Path) -> ServerCertificate:
    loaded = load_server_certificate(str(cert), str(key))
    assert loaded is not None
    return loaded


def problem(cert: Path, key: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(cert, key)
    (text,) = caught.value.problems
    return text


def write_rsa_key(path: Path, *, password: bytes | None = None) -> Path:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    path.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            encryption,
        )
    )
    return path


def test_a_port_without_a_certificate_has_no_tls() -> None:
    """A proxy terminates it."""
    assert load_server_certificate(None, None) is None


def test_key_and_chain_may_be_in_one_file(
    authority: Authority, signed: Signed, tmp_path: Path
) -> None:
    """Some tools write them so; the first certificate is that of the server."""
    both = tmp_path / "both.pem"
    files = (signed.cert, authority.cert, signed.key)
    both.write_bytes(b"".join(file.read_bytes() for file in files))

    loaded = load(both, both)

    assert loaded.pem == signed.cert.read_text()
    assert loaded.end_s == load(signed.cert, signed.key).end_s


def test_a_file_that_cannot_be_read_is_a_problem_of_its_setting(
    signed: Signed, tmp_path: Path
) -> None:
    """OpenSSL would not tell which of the two it is."""
    missing = tmp_path / "missing"

    assert problem(missing, signed.key) == (
        f"BRIDGE_TLS_CERT: {missing} cannot be read: No such file or directory"
    )
    assert problem(signed.cert, missing) == (
        f"BRIDGE_TLS_KEY: {missing} cannot be read: No such file or directory"
    )


def test_a_pipe_and_a_device_are_not_read(signed: Signed, tmp_path: Path) -> None:
    """A reload would wait forever, later ones too, and so would the exit."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    endless = Path("/dev/zero")

    assert problem(pipe, signed.key) == f"BRIDGE_TLS_CERT: {pipe} is not a file"
    assert problem(signed.cert, pipe) == f"BRIDGE_TLS_KEY: {pipe} is not a file"
    assert problem(endless, signed.key) == "BRIDGE_TLS_CERT: /dev/zero is not a file"


@pytest.mark.parametrize("content", ["", "text", "-----BEGIN CERTIFICATE-----\nabc\n"])
def test_a_file_with_something_else_is_a_problem_of_its_setting(
    signed: Signed, tmp_path: Path, content: str
) -> None:
    """For example, the two settings are exchanged."""
    wrong = tmp_path / "wrong"
    wrong.write_text(content)

    not_a_cert = "is not a certificate in PEM"
    assert problem(wrong, signed.key) == f"BRIDGE_TLS_CERT: {wrong} {not_a_cert}"
    assert problem(signed.key, signed.key).endswith(not_a_cert)
    not_a_key = "is not a private key in PEM"
    assert problem(signed.cert, wrong) == f"BRIDGE_TLS_KEY: {wrong} {not_a_key}"
    assert problem(signed.cert, signed.cert).endswith(not_a_key)


def test_a_key_of_another_certificate_is_refused(
    authority: Authority, signed: Signed, tmp_path: Path
) -> None:
    """After half of a renewal, or if a certificate of an issuer comes first."""
    other = authority.sign("other")
    text = "does not belong to the first certificate in BRIDGE_TLS_CERT"
    assert problem(signed.cert, other.key) == f"BRIDGE_TLS_KEY: {other.key} {text}"
    of_another_kind = write_rsa_key(tmp_path / "rsa.key")
    assert problem(signed.cert, of_another_kind).endswith(text)


def test_a_key_with_a_password_is_refused(signed: Signed, tmp_path: Path) -> None:
    """OpenSSL would ask for it on the terminal, and the start would wait."""
    key = write_rsa_key(tmp_path / "locked.key", password=b"secret")
    assert "is encrypted with a password; remove it" in problem(signed.cert, key)


def test_a_replaced_certificate_is_logged_once(authority: Authority) -> None:
    """The log shows that a renewal has arrived; an unchanged one is no news."""
    first, second = (
        load(pair.cert, pair.key)
        for pair in (authority.sign("first"), authority.sign("second", days=3))
    )
    port = PortCertificate(first)
    with capture_logs() as logs:
        port.replace(second)
        port.replace(second)

    assert [line["event"] for line in logs] == ["certificate.replaced"]
    assert port.current is second


def test_a_client_on_this_machine_trusts_the_certificate_alone(
    authority: Authority, signed: Signed, tmp_path: Path
) -> None:
    """Not its issuer: others have certificates of a public authority, too."""
    chain = tmp_path / "chain.pem"
    chain.write_bytes(signed.cert.read_bytes() + authority.cert.read_bytes())

    context = context_trusting(str(chain))

    assert context.cert_store_stats()["x509"] == 1
