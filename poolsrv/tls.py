"""TLS: from a listener's table to the contexts that its connections are accepted with.

Imported only where a listener has such a table: ``ssl`` takes a while to import. Everything is read when the config is
loaded, so a wrong file is an error of the config, and a reload reads renewed certificates.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import msgspec

from . import uncaught
from .config import TlsTable
from .problems import Key, Problems, quoted

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Tls(msgspec.Struct, frozen=True):
    """What a client and the server have agreed on.

    :ivar version: ``"TLSv1.2"`` or ``"TLSv1.3"``.
    :ivar cipher: the cipher suite, as OpenSSL calls it.
    :ivar server_name: the host that the client has asked for (SNI, RFC 6066); None where it has not.
    :ivar alpn: the protocol that was chosen (RFC 7301); None where there was nothing to choose from.
    :ivar client_certificate: the client's, in DER; None where it has shown none. It has been verified.
    :ivar client_subject: the subject of that, such as ``"CN=alice,O=Example"`` (RFC 4514, the most specific first).
    """

    version: str
    cipher: str
    server_name: str | None
    alpn: str | None
    client_certificate: bytes | None
    client_subject: str | None


class Acceptor:
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
    """Whether this is how Python tells that a server name (RFC 6066) is not ASCII. It then fails the handshake, which
    is told as any other that fails, and calls no callback."""
    return args.exc_type is UnicodeDecodeError and type(args.object) is bytes


def failure(error: OSError) -> str:
    """Why a handshake has failed, in words."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason == "CALLBACK_FAILED":  # the only callback is for the name
        return "the server name is not in ASCII"
    return _reason(error)


def agreed(accepted: ssl.SSLObject) -> Tls:
    """What has been agreed on, after the handshake."""
    certificate = accepted.getpeercert(binary_form=True)
    details = accepted.getpeercert() if certificate else None
    cipher = accepted.cipher()
    return Tls(
        version=accepted.version() or "",
        cipher=cipher[0] if cipher else "",
        server_name=getattr(accepted, "poolsrv_server_name", None),
        alpn=accepted.selected_alpn_protocol(),
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


def load(table: TlsTable, key: Key, problems: Problems) -> Acceptor | None:
    """Read the certificates of a listener.

    :param key: where its table is.
    :returns: None where something is wrong; it is among the problems then.
    """
    before = len(problems)
    default = _context(table, table.certificate, table.key, key, problems)
    by_name: dict[str, ssl.SSLContext] = {}
    for index, entry in enumerate(table.sni):
        place = (*key, "sni", index)
        context = _context(table, entry.certificate, entry.key, place, problems)
        for position, name in enumerate(entry.names):
            if not _is_server_name(name):
                expected = 'expected a host name such as "example.org" or "*.example.org"'
                problems.add((*place, "names", position), f"got {quoted(name)}, {expected}")
            elif name.lower() in by_name:
                problems.add((*place, "names", position), f"{quoted(name)} a second time, expected each name once")
            else:
                by_name[name.lower()] = context
    for index, protocol in enumerate(table.alpn):
        if not 0 < len(protocol.encode()) < 256:
            problems.add((*key, "alpn", index), f'got {quoted(protocol)}, expected a name such as "http/1.1"')
    if table.client_ca is None and table.client_certificate is not None:
        problems.add((*key, "client_certificate"), "nothing to verify it with, expected `client_ca` too")
    if len(problems) > before:
        return None
    for context in (default, *by_name.values()):
        if table.alpn:
            context.set_alpn_protocols(table.alpn)
    return Acceptor(default, by_name, table.handshake_timeout)


def _context(
    table: TlsTable, certificate: Path, private: Path | None, place: Key, problems: Problems
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[table.minimum_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if _is_readable(certificate, (*place, "certificate"), problems) and (
        private is None or _is_readable(private, (*place, "key"), problems)
    ):
        _load_certificate(context, certificate, private, place, problems)
    if table.client_ca is not None and _is_readable(table.client_ca, (*place, "client_ca"), problems):
        context.verify_mode = ssl.CERT_OPTIONAL if table.client_certificate == "optional" else ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cafile=table.client_ca)
        except ssl.SSLError as error:
            message = (
                f'no certificates in PEM in "{table.client_ca}" ({_reason(error)}), expected those of the authorities'
            )
            problems.add((*place, "client_ca"), message)
    return context


def _load_certificate(
    context: ssl.SSLContext, certificate: Path, private: Path | None, place: Key, problems: Problems
) -> None:
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True
        return ""

    try:
        context.load_cert_chain(certificate, private, password)
        return
    except ssl.SSLError as error:
        reason = error.reason or ""
        described = _reason(error)
    except ValueError:  # an empty password is refused where one is needed
        reason, described = "", ""
    where = "key" if private is not None else "certificate"
    if asked:
        problems.add(
            (*place, where), f'the key in "{private or certificate}" is encrypted, expected one without a password'
        )
    elif reason == "KEY_VALUES_MISMATCH":
        problems.add(
            (*place, where), f'"{private or certificate}" is not the key of the certificate in "{certificate}"'
        )
    elif _has_certificate(certificate):
        expected = (
            "expected a private key in PEM" if private is not None else "expected the private key there, or `key`"
        )
        problems.add((*place, where), f'no usable key in "{private or certificate}" ({described}), {expected}')
    else:
        problems.add(
            (*place, "certificate"),
            f'no certificate in "{certificate}" ({described}), expected one in PEM, and after it those up to the root',
        )


def _has_certificate(file: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except ssl.SSLError:
        return False
    return True


def _is_readable(file: Path, place: Key, problems: Problems) -> bool:
    try:
        with file.open("rb"):
            return True
    except OSError as error:
        problems.add(place, f'"{file}" can\'t be read: {error.strerror}, expected a file in PEM')
        return False


def _is_server_name(name: str) -> bool:
    labels = name.removeprefix("*.").split(".")
    return all(label.replace("-", "").replace("_", "").isalnum() and label.isascii() for label in labels)


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
