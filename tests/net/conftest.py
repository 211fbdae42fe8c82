"""What the tests of streams share: certificates, and what both sides of a connection over TLS use."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.helpers.certificates import Certificates
from tests.helpers.streams import Contexts


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates, which no test changes."""
    return Certificates(tmp_path_factory.mktemp("authority")).folder


@pytest.fixture(scope="session")
def contexts(authority: Path) -> Contexts:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority / "server.pem", authority / "server.key")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority / "ca.pem")
    return server, client
