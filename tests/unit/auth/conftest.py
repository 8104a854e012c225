"""Keys for the tests of auth, generated once because RSA keys take long."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.tokens import PrivateKey


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    """Return an RSA key of the smallest allowed size."""
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def private_keys(rsa_key: rsa.RSAPrivateKey) -> dict[str, PrivateKey]:
    """Return a key for each asymmetric algorithm that the settings support."""
    return {
        "RS256": rsa_key,
        "RS384": rsa_key,
        "RS512": rsa_key,
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "ES384": ec.generate_private_key(ec.SECP384R1()),
        "ES512": ec.generate_private_key(ec.SECP521R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
