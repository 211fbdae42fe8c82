"""Outgoing connections over TLS, in this process: who is trusted, what is agreed on, how it fails."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolsrv import ClientTls
from poolsrv.core.event_loop import EventLoop
from poolsrv.net.connector import OutgoingStream
from poolsrv.net.tls import _client_context
from tests.helpers.certificates import Certificates
from tests.helpers.streams import Connecting, Owner, turn_until

Connect = Callable[..., Connecting]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Certificates(tmp_path_factory.mktemp("outgoing"))
    made.make("numeric", "127.0.0.1")
    return made.folder


@pytest.fixture
def connect(loop: EventLoop, folder: Path) -> Iterator[Connect]:
    """``connect(tls, server=..., ...)``: a stream to a server with this certificate; it has come to OPEN or CLOSED."""
    made: list[Connecting] = []

    def begin(tls: ClientTls, server: str = "server", client_ca: str = "", alpn: tuple[str, ...] = ()) -> Connecting:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{server}.pem", folder / f"{server}.key")
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(folder / client_ca)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        one = Connecting(loop, (context, context), tls)
        made.append(one)
        one.stream.send(b"secret")
        one.accept()
        one.until(lambda: one.state in ("OPEN", "CLOSED"))
        one.turns()
        return one

    yield begin
    for one in made:
        one.end()


def trusting(folder: Path, **options: object) -> ClientTls:
    return ClientTls(**{"ca_file": folder / "ca.pem", "server_name": "localhost", **options})  # type: ignore[arg-type]


def test_a_server_of_the_right_name_and_authority_is_trusted(connect: Connect, folder: Path) -> None:
    one = connect(trusting(folder))
    assert one.state == "OPEN"
    one.until(lambda: one.peer.received == b"secret")
    one.peer.send(b"answer")
    one.until(lambda: one.took == b"answer")
    tls = one.stream.tls
    assert tls.version == "TLSv1.3"
    assert tls.cipher.startswith("TLS_")
    assert (tls.server_name, tls.alpn, tls.client_certificate, tls.client_subject) == ("localhost", None, None, None)


def test_without_tls_nothing_is_agreed_on(loop: EventLoop) -> None:
    one = Connecting(loop)
    one.establish()
    assert one.stream.tls is None
    one.end()


@pytest.mark.parametrize(
    ("options", "server", "reason"),
    [
        ({"ca_file": None}, "server", "unable to get local issuer certificate"),
        ({"ca_file": "otherca.pem"}, "server", "unable to get local issuer certificate"),
        ({"server_name": "one.example"}, "server", "Hostname mismatch, certificate is not valid for 'one.example'."),
        ({"server_name": None}, "server", "IP address mismatch, certificate is not valid for '127.0.0.1'."),
        ({"server_name": "late"}, "late", "certificate has expired"),
    ],
    ids=["system", "other authority", "other host", "address", "expired"],
)
def test_a_server_that_can_not_be_trusted_gets_nothing(
    connect: Connect, folder: Path, options: dict[str, str | None], server: str, reason: str
) -> None:
    if options.get("ca_file"):
        options = {**options, "ca_file": str(folder / "otherca.pem")}
    one = connect(trusting(folder, **options), server)
    assert (one.state, one.stream._reason, one.calls) == ("CLOSED", "connect failed", ["on_close"])
    expected = f"[Errno 71] the TLS handshake has failed: the certificate can't be trusted: {reason}"
    assert str(one.error) == expected
    assert isinstance(one.error.__cause__, ssl.SSLCertVerificationError)  # type: ignore[union-attr]
    one.until(lambda: one.peer.end)
    assert one.peer.received == b""


def test_whoever_asks_for_it_trusts_everybody(connect: Connect) -> None:
    one = connect(ClientTls(verify=False), "late")
    assert one.state == "OPEN"
    one.until(lambda: one.peer.received == b"secret")


def test_a_protocol_is_chosen(connect: Connect, folder: Path) -> None:
    one = connect(trusting(folder, alpn=("h2", "http/1.1")), alpn=("http/1.1",))
    assert one.stream.tls.alpn == "http/1.1"


def test_a_certificate_of_ones_own_is_shown(connect: Connect, folder: Path) -> None:
    own = {"certificate": folder / "alice.pem", "key": folder / "alice.key"}
    one = connect(trusting(folder, **own), client_ca="ca.pem")
    one.until(lambda: one.peer.received == b"secret")
    shown = one.peer.tls.getpeercert()  # type: ignore[union-attr]
    assert "alice" in str(shown)


def test_a_server_that_wants_a_certificate_and_gets_none(connect: Connect, folder: Path) -> None:
    one = connect(trusting(folder), client_ca="ca.pem")
    one.until(lambda: one.calls[-1:] == ["on_close"])
    assert "certificate required" in str(one.error)  # with TLS 1.3 it says so after the handshake
    assert one.stream.reset


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ca_file": "missing.pem"}, "[Errno 2] No such file or directory: '{}/missing.pem'"),
        ({"ca_file": "server.key"}, "[Errno 22] no certificates in PEM (no certificate or crl found): '{}/server.key'"),
        ({"certificate": "missing.pem"}, "[Errno 2] No such file or directory: '{}/missing.pem'"),
        ({"certificate": "alice.pem", "key": "missing.key"}, "[Errno 2] No such file or directory: '{}/alice.pem'"),
        (
            {"certificate": "alice.pem", "key": "server.key"},
            "[Errno 22] no usable certificate and key in PEM (key values mismatch): '{}/alice.pem'",
        ),
    ],
    ids=["ca", "no ca", "certificate", "key", "mismatch"],
)
def test_a_file_that_is_wrong_is_an_error_of_the_stream(
    loop: EventLoop, folder: Path, options: dict[str, str], error: str
) -> None:
    tls = trusting(folder, **{name: folder / file for name, file in options.items()})
    assert str(failure_of(loop, "127.0.0.1:1", tls)) == error.format(folder)


def test_an_encrypted_key_asks_nobody_for_its_password(loop: EventLoop, folder: Path) -> None:
    locked = folder / "locked.key"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n")
    error = failure_of(loop, "127.0.0.1:1", trusting(folder, certificate=folder / "alice.pem", key=locked))
    assert str(folder / "alice.pem") in str(error)


@pytest.mark.parametrize(
    ("address", "options", "error"),
    [
        ("unix:x.sock", {}, "TLS over a unix socket needs a server_name to verify the certificate against"),
        ("127.0.0.1:1", {"server_name": ".example"}, '".example" can\'t be a server_name: '),
    ],
    ids=["unix", "no name"],
)
def test_a_name_that_can_not_be_verified_is_an_error_of_the_stream(
    loop: EventLoop, address: str, options: dict[str, str], error: str
) -> None:
    found = failure_of(loop, address, ClientTls(**options))  # type: ignore[arg-type]
    assert isinstance(found, ValueError)
    assert str(found).startswith(error)


def failure_of(loop: EventLoop, address: str, tls: ClientTls) -> BaseException | None:
    stream = OutgoingStream(loop, Owner(), address, Path("/"), 10.0, tls)
    told: list[BaseException | None] = []
    stream.on_close = lambda stream, error: told.append(error)
    turn_until(loop, lambda: told)
    return told[0]


def test_what_is_no_tls_is_an_error(loop: EventLoop, folder: Path) -> None:
    one = Connecting(loop, None, trusting(folder))
    one.accept()
    one.peer.send(b"220 mail.example ESMTP\r\n")
    one.until(lambda: one.calls == ["on_close"])
    assert str(one.error).startswith("[Errno 71] the TLS handshake has failed: ")
    one.end()


def test_a_server_that_closes_instead_of_a_handshake(loop: EventLoop, folder: Path) -> None:
    one = Connecting(loop, None, trusting(folder))
    one.accept()
    one.peer.finish()
    one.until(lambda: one.calls == ["on_close"])
    assert str(one.error) == "[Errno 71] the TLS handshake has failed: the peer has closed the connection"
    one.end()


def test_the_address_is_the_name_where_there_is_no_other(connect: Connect, folder: Path) -> None:
    # The certificate names it as a host, not as an address, and that does not do.
    one = connect(trusting(folder, server_name=None), "numeric")
    assert "IP address mismatch" in str(one.error)


def test_files_are_read_once(folder: Path) -> None:
    assert _client_context(trusting(folder)) is _client_context(trusting(folder))
    assert _client_context(trusting(folder)) is not _client_context(trusting(folder, verify=False))
