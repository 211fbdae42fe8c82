"""TLS: from a listener's table to the contexts that its connections are accepted with.

Imported only where a listener has such a table: ``ssl`` takes a while to import. Everything is read when the config is
loaded, so a wrong file is an error of the config, and a reload reads renewed certificates.
"""

from __future__ import annotations

import errno
import os
import ssl
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..core import uncaught

if TYPE_CHECKING:
    pass


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
    """Whether this is how Python tells that a server name (RFC 6066) is not ASCII. It then fails the handshake, which
    is told as any other that fails, and calls no callback."""
    return args.exc_type is UnicodeDecodeError and type(args.object) is bytes


def failure(error: OSError) -> str:
    """Why a handshake has failed, in words."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason == "CALLBACK_FAILED":  # the only callback is for the name
        return "the server name is not in ASCII"
    return reason_of(error)


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


def reason_of(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


RECORD: Final = 16384  # bytes, RFC 8446, section 5.1
RAW_SIZE: Final = 65536 + 4 * 256  # read at a time: four records and what is around them
WRITE_SIZE: Final = 4 * RECORD  # sealed at a time


class Transport:
    """The bytes of one connection, sealed.

    :ivar ready: there may be bytes, or the end of stream, that the kernel knows nothing of.
    """

    __slots__ = ("_fd", "_finished", "_in", "_in_flight", "_out", "_over", "_raw", "object", "ready")

    def __init__(self, server_tls: ServerTls, fd: int) -> None:
        self._fd = fd
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self.object = server_tls.accept(self._in, self._out)
        self._raw = b""  # sealed, and not taken by the kernel
        self._in_flight = 0  # bytes of the last write that are in there, and that nobody has been told of
        self._over = False  # the peer has finished sending
        self._finished = False  # we have
        self.ready = False

    def shake_hands(self) -> bool:
        """Go on with the handshake; True once it is done.

        :raises BlockingIOError: the peer has to go on.
        :raises OSError: it has failed (``ssl.SSLError``), or the peer is gone.
        """
        self._receive()
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._send_some()
        self.ready = self._in.pending > 0
        return True

    @property
    def has_unsent(self) -> bool:
        """Whether the kernel has not taken all."""
        return bool(self._raw)

    def read(self, fd: int, size: int) -> bytes:
        """As read(2) of a non-blocking descriptor."""
        if self.ready:
            data = self._open(size)
            if data is not None:
                return data
        self._receive()
        data = self._open(size)
        if data is None:
            raise BlockingIOError
        return data

    def _receive(self) -> None:
        raw = os.read(self._fd, RAW_SIZE)
        if raw:
            self._in.write(raw)
        elif not self._over:
            raise ConnectionResetError(errno.ECONNRESET, "the end of the stream without close_notify")

    def _open(self, size: int) -> bytes | None:
        """What is in the buffer, at most ``size`` bytes; ``b""`` at end of stream; None where no record is whole."""
        if self._over:
            self.ready = False
            return b""
        pieces = []
        self.ready = True
        try:
            while size > 0:
                piece = self.object.read(min(size, RECORD))
                if not piece:
                    self._over = True
                    break
                pieces.append(piece)
                size -= len(piece)
        except ssl.SSLWantReadError:
            self.ready = False
        except ssl.SSLZeroReturnError:
            self._over = True
        finally:
            if self._out.pending:  # an alert, or an answer to a change of keys
                self._send_some()
        if pieces:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._over:
            self.ready = False
            return b""
        return None

    def write(self, fd: int, data: Any) -> int:
        """As write(2) of a non-blocking descriptor; after BlockingIOError it has to be called with the same bytes, or
        more of them."""
        if self._raw and not self._send_some():
            raise BlockingIOError
        if not self._in_flight:
            with memoryview(data) as whole, whole[:WRITE_SIZE] as piece:
                self._in_flight = self.object.write(piece)
            if not self._send_some():
                raise BlockingIOError
        taken, self._in_flight = self._in_flight, 0
        return taken

    def _send_some(self) -> bool:
        """Hand to the kernel what is sealed; True where it has taken all.

        :raises OSError: write(2).
        """
        if self._out.pending:
            self._raw += self._out.read()
        if self._raw:
            try:
                self._raw = self._raw[os.write(self._fd, self._raw) :]
            except BlockingIOError:
                return False
        return not self._raw

    def finish(self) -> None:
        """Tell the peer that nothing more comes. Nothing happens where it has been told, or is gone."""
        if self._finished:
            return
        self._finished = True
        try:
            self.object.unwrap()
        except (OSError, ValueError):
            pass  # it would wait for the peer's answer; or the handshake is not done
        try:
            self._send_some()
        except OSError:
            pass
