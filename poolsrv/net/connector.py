"""An outgoing connection: a stream that is being connected, without blocking (connect(2), EINPROGRESS), and over TLS
where that is asked for."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.event_loop import WRITE, EventLoop
from . import addresses
from .descriptor import CLOSED, CONNECTING, Owner
from .stream import Stream

if TYPE_CHECKING:
    from .tls import ClientTls
    from .tls_transport import Handshake


class OutgoingStream(Stream):
    """The stream that ``Connection.connect`` returns. Every failure, also one at once, arrives as ``on_close``.

    At end of stream it closes by itself once it has finished sending too (``send_eof``), or the client has finished
    sending: until then there may be something to send.

    :param address: as in a listener's ``bind``; the path of a unix socket is relative to ``base``.
    :param timeout: seconds within which the connection has to be established, the TLS handshake included.
    :param tls: how to use TLS; None: not at all.
    """

    __slots__ = ("_handshake",)

    def __init__(
        self, loop: EventLoop, owner: Owner, address: str, base: Path, timeout: float, tls: ClientTls | None = None
    ) -> None:
        self._handshake: Handshake | None = None
        error: Exception | None
        try:
            target = addresses.parse(address, base)
            sock = socket.socket(target.family, socket.SOCK_STREAM)
        except (ValueError, OSError) as failure:
            super().__init__(loop, -1, owner)
            error = failure
        else:
            super().__init__(loop, sock.fileno(), owner)
            self._made = sock
            error = self._connect(target, tls)
        self._state = CONNECTING
        if error is not None:
            # Not from inside ``connect``: the caller has not got its stream yet.
            loop.at_end_of_turn(partial(self._failed, error))
        else:
            self._await_opening(WRITE, self._on_connected, timeout, self._timed_out)

    def _connect(self, target: addresses.Address, tls: ClientTls | None) -> Exception | None:
        """Begin to connect.

        :returns: what has failed at once.
        """
        try:
            if tls is not None:
                self._prepare_handshake(tls, target.host.partition("%")[0])
            code = self._sock.connect_ex(target.sockaddr)
        except (ValueError, OSError) as error:  # a path that is too long, a file that is not there
            return error
        return None if code in (0, errno.EINPROGRESS) else OSError(code, os.strerror(code))

    def _prepare_handshake(self, tls: ClientTls, host: str) -> None:
        from .tls_transport import Handshake, TlsTransport  # ssl takes a while to import

        transport = TlsTransport(lambda incoming, outgoing: tls.wrap(incoming, outgoing, host), self._fd)
        self._use(transport)
        self._handshake = Handshake(self, transport, self._ready, self._handshake_failed)

    def _on_connected(self, mask: int) -> None:
        code = self._socket_error()
        if code:
            self._connection_lost(OSError(code, os.strerror(code)))
        elif self._handshake is not None:
            self._handshake.on_event(mask)  # the client's message is the first
        else:
            self._ready()

    def _ready(self) -> None:
        """Open: what was sent, finished, closed or relayed meanwhile is due."""
        self._opened()
        self._loop.set_callback(self._fd, self._callback())
        self._update()
        if self._relay_in is not None:
            self._relay_in.pump()
        if self._out is None:
            self._flushed()

    def _close_if_done(self) -> None:
        # The other side may have finished first, and go on receiving what the client still sends.
        owner = self._owner
        if self._sends_eof or owner is None or owner._peer_has_finished() or not owner._is_open():
            super()._close_if_done()

    def _timed_out(self) -> None:
        in_handshake = self._handshake is not None and self._handshake.begun
        what = "the TLS handshake was not done in time" if in_handshake else os.strerror(errno.ETIMEDOUT)
        self._failed(TimeoutError(errno.ETIMEDOUT, what))

    def _handshake_failed(self, error: OSError) -> None:
        from .tls import failure

        failed = OSError(errno.EPROTO, f"the TLS handshake has failed: {failure(error)}")
        failed.__cause__ = error
        self._failed(failed)

    def _failed(self, error: Exception) -> None:
        if self._state != CLOSED:
            self._error = error
            self._end("connect failed")
