"""TLS: the contexts of both sides, and what is agreed on in a handshake.

Imported only where TLS is used: ``ssl`` takes a while to import. A listener's files are read when the config is loaded,
so a wrong file is an error of the config, and a reload reads renewed certificates.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from ..core import uncaught


class Tls(msgspec.Struct, frozen=True):
    """What a client and a server have agreed on.

    :ivar version: ``"TLSv1.2"`` or ``"TLSv1.3"``.
    :ivar cipher: the cipher suite, as OpenSSL calls it.
    :ivar server_name: the host that the client has asked for (SNI, RFC 6066); None where it has not.
    :ivar alpn: the protocol that was chosen (RFC 7301); None where there was nothing to choose from.
    :ivar client_certificate: the client's, in DER; None where it has shown none. It has been verified. Of an outgoing
        connection always None.
    :ivar client_subject: the subject of that, such as ``"CN=alice,O=Example"`` (RFC 4514, the most specific first).
    """

    version: str
    cipher: str
    server_name: str | None
    alpn: str | None
    client_certificate: bytes | None
    client_subject: str | None


class ClientTls(msgspec.Struct, frozen=True, kw_only=True):
    """How an outgoing connection uses TLS, for ``Connection.connect``. A plugin's options may have it as a field.

    The server's certificate is verified. The files are read at the first connection of a worker, and once.

    :ivar server_name: the host to ask for (SNI) and to verify the certificate against; None: the address that is
        connected to.
    :ivar ca_file: the certificates of the authorities to trust, in PEM; None: those of the system.
    :ivar certificate: the own certificate, in PEM, with those up to the root; None: none.
    :ivar key: its private key, in PEM; None: it is in the same file.
    :ivar alpn: the protocols to choose from, the preferred one first (RFC 7301).
    :ivar verify: False: accept any certificate, no matter whose. The connection is then not safe from an attacker
        in the network in between.
    """

    server_name: str | None = None
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    alpn: tuple[str, ...] = ()
    verify: bool = True

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, host: str) -> ssl.SSLObject:
        """The client's side of a new connection, before the handshake.

        :param host: the address that is connected to; empty for a unix socket.
        :raises ValueError: there is no name to verify the certificate against, or what is given can't be one.
        :raises OSError: a file can't be read, or has not what it should have.
        """
        name = self.server_name or host
        if not name and self.verify:
            raise ValueError("TLS over a unix socket needs a server_name to verify the certificate against")
        context = _client_context(self)
        try:
            wrapped = context.wrap_bio(incoming, outgoing, server_hostname=name or None)
        except ValueError as error:
            raise ValueError(f'"{name}" can\'t be a server_name: {error}') from error
        wrapped.poolsrv_server_name = name or None  # type: ignore[attr-defined]
        return wrapped


@lru_cache(maxsize=64)  # to read the system's certificates takes some milliseconds
def _client_context(options: ClientTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.ca_file is None:
        context.load_default_certs()
    else:
        with _explained(options.ca_file, "no certificates in PEM"):
            context.load_verify_locations(cafile=options.ca_file)
    if options.certificate is not None:
        with _explained(options.certificate, "no usable certificate and key in PEM"):
            # Without the password's callback, OpenSSL would ask for it on the terminal.
            context.load_cert_chain(options.certificate, options.key, lambda: "")
    if options.alpn:
        context.set_alpn_protocols(list(options.alpn))
    return context


@contextmanager
def _explained(file: Path, what: str) -> Iterator[None]:
    """Name the file in the error, and what is wrong with it."""
    try:
        yield
    except ssl.SSLError as error:
        raise OSError(errno.EINVAL, f"{what} ({reason_of(error)})", str(file)) from error
    except ValueError as error:  # an empty password is refused where one is needed
        raise OSError(errno.EINVAL, "the key is encrypted, expected one without a password", str(file)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


class ServerTls:
    """Accepts the connections of one listener; made in the dispatcher, before the fork.

    :ivar handshake_timeout: seconds.
    """

    def __init__(self, default: ssl.SSLContext, by_name: dict[str, ssl.SSLContext], handshake_timeout: float) -> None:
        self.handshake_timeout = handshake_timeout
        self._default = default
        self._by_name = by_name
        default.sni_callback = self._choose
        uncaught.expect(_is_bad_name)

    def accept(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """The server's side of a new connection, before the handshake."""
        return self._default.wrap_bio(incoming, outgoing, server_side=True)

    def _choose(self, accepted: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Take the certificate for the name that the client asks for; of one that has none, the first."""
        # The only place where the name is ever told.
        accepted.poolsrv_server_name = name  # type: ignore[attr-defined]
        if name is not None:
            exact = name.lower().rstrip(".")
            chosen = self._by_name.get(exact) or self._by_name.get("*." + exact.partition(".")[2])
            if chosen is not None:
                accepted.context = chosen


def _is_bad_name(args: Any) -> bool:
    """Whether this is how Python tells that a server name (RFC 6066) is not ASCII. The handshake then fails. It is
    logged like any other failed handshake, and no callback is called."""
    return args.exc_type is UnicodeDecodeError and type(args.object) is bytes


def failure(error: OSError) -> str:
    """Why a handshake has failed, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate can't be trusted: {error.verify_message}"
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason == "CALLBACK_FAILED":  # the only callback is for the name
        return "the server name is not in ASCII"
    return reason_of(error)


def agreed(wrapped: ssl.SSLObject) -> Tls:
    """What has been agreed on, after the handshake."""
    certificate = wrapped.getpeercert(binary_form=True) if wrapped.server_side else None
    details = wrapped.getpeercert() if certificate else None
    cipher = wrapped.cipher()
    return Tls(
        version=wrapped.version() or "",
        cipher=cipher[0] if cipher else "",
        server_name=getattr(wrapped, "poolsrv_server_name", None),
        alpn=wrapped.selected_alpn_protocol(),
        client_certificate=certificate,
        client_subject=_subject(details) if details else None,
    )


_SHORT = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "stateOrProvinceName": "ST",
    "localityName": "L",
}


def _subject(details: object) -> str:
    parts = [pair for group in details["subject"] for pair in group]  # type: ignore[index]
    escaped = [(name, "".join(f"\\{c}" if c in ',+"\\<>;=' else c for c in value)) for name, value in parts]
    return ",".join(f"{_SHORT.get(name, name)}={value}" for name, value in reversed(escaped))


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason, in words."""
    return (error.reason or str(error)).lower().replace("_", " ")
