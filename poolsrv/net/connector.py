"""An outgoing connection: a stream that is being connected, without blocking (connect(2), EINPROGRESS)."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from ..core.event_loop import WRITE, EventLoop, Timer
from . import addresses
from .descriptor import CLOSED, CLOSING, CONNECTING, OPEN, Owner
from .stream import Stream


class OutgoingStream(Stream):
    """The stream that ``Connection.connect`` returns. Every failure, also one at once, arrives as ``on_close``.

    At end of stream it closes by itself once it has finished sending too (``send_eof``), or the client has finished
    sending: until then there may be something to send.

    :param address: as in a listener's ``bind``; the path of a unix socket is relative to ``base``.
    :param timeout: seconds within which the connection must stand.
    """

    __slots__ = ("_timeout",)

    def __init__(self, loop: EventLoop, owner: Owner, address: str, base: Path, timeout: float) -> None:
        self._timeout: Timer | None = None
        try:
            target = addresses.parse(address, base)
            sock = socket.socket(target.family, socket.SOCK_STREAM)
        except (ValueError, OSError) as error:
            super().__init__(loop, -1, owner)
            self._state = CONNECTING
            self._fails_at_once(error)
            return
        super().__init__(loop, sock.fileno(), owner)
        self._made = sock
        sock.setblocking(False)
        self._state = CONNECTING
        try:
            code = sock.connect_ex(target.sockaddr)
        except OSError as error:  # a path that is too long
            self._fails_at_once(error)
            return
        if code not in (0, errno.EINPROGRESS):
            self._fails_at_once(OSError(code, os.strerror(code)))
            return
        self._interest = WRITE
        loop.register(self._fd, WRITE, self._on_connected)
        self._timeout = loop.call_later(timeout, self._timed_out)

    def _on_connected(self, mask: int) -> None:
        code = self._socket_error()
        if code:
            self._connection_lost(OSError(code, os.strerror(code)))
            return
        self._cancel_timeout()
        if self._state == CONNECTING:
            self._state = OPEN
        self._loop.set_callback(self._fd, self._callback())
        self._update()
        if self._relay_in is not None:
            self._relay_in.pump()
        if self._out is None:
            self._flushed()

    def close(self, reason: str = "") -> None:
        """As of every stream; what was sent while connecting is still written once the connection stands."""
        if self._state == CONNECTING and self._out is not None:
            self._state, self._reason = CLOSING, reason
        else:
            super().close(reason)

    def _close_if_done(self) -> None:
        # The other side may have finished first, and go on receiving what the client still sends.
        owner = self._owner
        if self._sends_eof or owner is None or owner._peer_has_finished() or not owner._is_open():
            super()._close_if_done()

    def _fails_at_once(self, error: Exception) -> None:
        """Not from inside ``connect``: the caller has not got its stream yet."""
        self._loop.at_end_of_turn(lambda: self._failed(error))

    def _timed_out(self) -> None:
        self._failed(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _failed(self, error: Exception) -> None:
        if self._state != CLOSED:
            self._error = error
            self._end("connect failed")

    def _end(self, reason: str) -> None:
        if self._state != CLOSED:
            self._cancel_timeout()
        super()._end(reason)

    def _cancel_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
