"""From the certificates and keys that a config names to TLS contexts, with every error."""

from __future__ import annotations

import ssl
from pathlib import Path

from ..core.words import quoted
from ..net.tls import ServerTls, reason_of
from .errors import Key, Problems
from .model import TlsTable

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def load(table: TlsTable, key: Key, problems: Problems) -> ServerTls | None:
    """Read the certificates and keys of a listener.

    :param key: where the listener's table is.
    :returns: None if there are errors, which are added to ``problems``.
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
    return ServerTls(default, by_name, table.handshake_timeout)


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
                f'no certificates in PEM in "{table.client_ca}" ({reason_of(error)}), expected those of the authorities'
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
        described = reason_of(error)
    except ValueError:  # OpenSSL refuses the empty password
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
