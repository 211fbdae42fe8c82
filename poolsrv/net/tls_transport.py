"""TLS as a transport, and the handshake before it.

Theory. OpenSSL never touches the socket. What arrives is put into one buffer (a BIO), from which OpenSSL takes records
and gives bytes; what is sent goes the other way, through a second one. ``TlsTransport.read`` and ``write`` stand in the
place of read(2) and write(2), with their conventions, and all above them stays as it is. Three things differ:

- Bytes, or the end of stream, may be in the first buffer, of which the kernel knows nothing: its event would never
  come. ``ready`` puts a stream with such a buffer on the ready list (see descriptor.py).
- Bytes that OpenSSL has sealed can't be taken back. Where the kernel does not take all of a record, ``write`` says that
  it would block, and remembers; called again with the same bytes, it goes on, and says how many it has taken.
- The end of stream is an alert (close_notify, RFC 8446, section 6.1). An end of the socket's stream without it may be
  an attacker's, and is a reset.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..core.event_loop import READ, WRITE
from .tls import agreed

if TYPE_CHECKING:
    from .tls import Tls


RECORD: Final = 16384  # bytes, RFC 8446, section 5.1
RAW_SIZE: Final = 65536 + 4 * 256  # read at a time: four records and what is around them
WRITE_SIZE: Final = 4 * RECORD  # sealed at a time

Wrap = Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]


class TlsTransport:
    """The bytes of one stream, sealed.

    :param wrap: makes the server's or the client's side of it, over the two buffers (``ssl.SSLContext.wrap_bio``).
    :ivar ready: there may be bytes, or the end of stream, of which the kernel knows nothing.
    :ivar tls: what was agreed on, once the handshake is done.
    """

    __slots__ = ("_fd", "_finished", "_in", "_in_flight", "_object", "_out", "_over", "_raw", "ready", "tls")

    can_splice: Final = False
    is_plain: Final = False

    def __init__(self, wrap: Wrap, fd: int) -> None:
        self._fd = fd
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._object = wrap(self._in, self._out)
        self._raw = b""  # sealed, and not taken by the kernel
        self._in_flight = 0  # bytes of the last write that are in there, and that the caller has not been told of
        self._over = False  # the peer has finished sending
        self._finished = False  # we have
        self.ready = False
        self.tls: Tls | None = None

    def shake_hands(self) -> bool:
        """Go on with the handshake; True once it is done and the kernel has taken all of it.

        :raises OSError: it has failed (``ssl.SSLError``), or the peer is gone.
        """
        if self.tls is None:
            try:
                self._receive()
            except BlockingIOError:
                pass  # the client begins; or the kernel takes more of what is kept
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._send_some()
                return False
            except ssl.SSLError:
                self._send_alert()
                raise
            self.tls = agreed(self._object)
            self.ready = self._in.pending > 0
        return self._send_some()

    @property
    def wanted(self) -> int:
        """The events that the handshake waits for."""
        if self.tls is not None:
            return WRITE
        return READ | WRITE if self._raw else READ

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
            what = "the end of the stream without close_notify" if self.tls else "the peer has closed the connection"
            raise ConnectionResetError(errno.ECONNRESET, what)

    def _open(self, size: int) -> bytes | None:
        """What is in the buffer, at most ``size`` bytes; ``b""`` at end of stream; None where no record is whole."""
        if self._over:
            self.ready = False
            return b""
        pieces = []
        self.ready = True
        try:
            while size > 0:
                piece = self._object.read(min(size, RECORD))
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
        """As write(2) of a non-blocking descriptor; after ``BlockingIOError`` it has to be called with the same bytes,
        or more of them."""
        if self._raw and not self._send_some():
            raise BlockingIOError
        if not self._in_flight:
            with memoryview(data) as whole, whole[:WRITE_SIZE] as piece:
                self._in_flight = self._object.write(piece)
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

    def _send_alert(self) -> None:
        try:
            self._send_some()
        except OSError:
            pass  # the peer is gone

    def finish(self) -> None:
        """Tell the peer that nothing more comes. Nothing happens where it has been told, or is gone."""
        if self._finished:
            return
        self._finished = True
        try:
            self._object.unwrap()
        except (OSError, ValueError):
            pass  # it would wait for the peer's answer; or the handshake is not done
        self._send_alert()


class Opening(Protocol):
    """A stream that is not open yet, as a handshake sees it."""

    def _await_opening(
        self,
        interest: int,
        on_event: Callable[[int], object],
        timeout: float = 0.0,
        too_late: Callable[[], object] | None = None,
    ) -> None:
        """Have ``on_event`` called, as a stage before the stream is open."""


class Handshake:
    """Exchanges the messages of a handshake, as a stage before a stream is open.

    :param done: called once the handshake is done.
    :param failed: called with the error where it has failed.
    :ivar begun: the first message has been sent or received.
    """

    __slots__ = ("_done", "_failed", "_stream", "_transport", "begun")

    def __init__(
        self,
        stream: Opening,
        transport: TlsTransport,
        done: Callable[[], object],
        failed: Callable[[OSError], object],
    ) -> None:
        self._stream = stream
        self._transport = transport
        self._done = done
        self._failed = failed
        self.begun = False

    def on_event(self, mask: int) -> None:
        """Go on: the peer has sent something, or the kernel takes more."""
        self.begun = True
        try:
            done = self._transport.shake_hands()
        except OSError as error:
            self._failed(error)
            return
        if done:
            self._done()
        else:
            self._stream._await_opening(self._transport.wanted, self.on_event)
