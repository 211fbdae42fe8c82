"""One descriptor in the event loop: its state, the events it is watched for, its end, and the fault boundary.

Theory. A stream is in one of these states, and only the moves of this table exist:

    CONNECTING --> OPEN          the kernel says that the connection stands
    CONNECTING --> CLOSING       close(), with something kept: it is written once the connection stands
    OPEN       --> CLOSING       close(): what is kept is still written
    CLOSING    --> LINGERING     all is written, but the peer may still be sending
    any        --> CLOSED        all is written; or abort(), a reset, a failure

What ends in the middle of a turn is not dispatched any more from that moment on; whoever is to know is told at the
end of the turn, so never from inside another callback, and then the descriptor is closed.

Descriptors are non-blocking, and read(2) and write(2) serve sockets and pipes alike: in CPython they cost half as much
as the socket's own ``recv`` and ``send``, and most connections never need a socket object. But O_NONBLOCK belongs to
the open file, and a program that is given the connection as its standard output must not see it: a shared descriptor
is blocking, and each call passes MSG_DONTWAIT.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from ..core.event_loop import READ, EventLoop

CONNECTING, OPEN, CLOSING, LINGERING, CLOSED = range(5)

# In the place of an interest: not registered. READ and WRITE are not in it.
UNWATCHED: Final = -8

_DONT_WAIT: Final = int(socket.MSG_DONTWAIT)
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"  # struct linger {1, 0}: close(2) sends a reset
_UNSPECIFIED = bytes(16)  # struct sockaddr with AF_UNSPEC

_libc = ctypes.CDLL(None)


class Owner(Protocol):
    """The connection that a stream belongs to, as the stream sees it. What has no owner is a connection itself."""

    def _stream_ended(self, stream: Descriptor) -> None:
        """The stream's descriptor is closed."""

    def _fault(self, what: str, error: BaseException) -> None:
        """A plugin's callback, named by ``what``, has raised an exception."""

    def _peer_has_finished(self) -> bool:
        """Whether the plugin has been told of the end of the connection's own input."""

    def _is_open(self) -> bool:
        """Whether the connection is open."""


class Descriptor:
    """See the module's docstring; the base of Stream, which says what is wanted and what to do with it.

    :param fd: it is this object's from now on; of a socket, unless ``_is_socket`` says otherwise. -1: there is none.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_fd",
        "_interest",
        "_loop",
        "_made",
        "_owner",
        "_read",
        "_reading",
        "_reason",
        "_shared",
        "_state",
        "_write",
    )

    def __init__(self, loop: EventLoop, fd: int, owner: Owner | None) -> None:
        self._loop = loop
        self._fd = fd
        self._made: socket.socket | None = None  # see _sock
        self._owner = owner
        self._read: Callable[[int, int], bytes] = os.read
        self._write: Callable[[int, Any], int] = os.write
        self._state = OPEN
        self._interest = UNWATCHED
        self._reading = False  # READ is in _interest
        self._shared = False  # a program has a copy of the descriptor
        self._error: BaseException | None = None  # that ended it
        self._reason = ""  # of its end
        if fd >= 0:
            os.set_blocking(fd, False)

    # --- being watched

    def _start(self) -> None:
        """Have the loop watch the descriptor; with no interest too, for a reset is told all the same."""
        self._interest = wanted = self._wanted()
        self._reading = wanted & READ != 0
        self._loop.register(self._fd, wanted, self._callback())

    def _update(self) -> None:
        """Tell the loop which events are of interest, where that has changed."""
        if self._state != OPEN and self._state != CLOSING:
            return
        wanted = self._wanted()
        if wanted != self._interest:
            if self._interest >= 0:
                self._loop.modify(self._fd, wanted)
            elif wanted:
                self._loop.register(self._fd, wanted, self._callback())
            else:
                return
            self._interest = wanted
            self._reading = wanted & READ != 0

    def _unwatch(self) -> None:
        """Hear nothing more, until something is wanted again."""
        if self._interest >= 0:
            self._loop.unregister(self._fd)
            self._interest = UNWATCHED
            self._reading = False

    def _wanted(self) -> int:
        """The events of interest now."""
        raise NotImplementedError

    def _callback(self) -> Callable[[int], object]:
        """What the loop is to call with events."""
        raise NotImplementedError

    def _share(self) -> None:
        """A program is about to get a copy of the descriptor."""
        sock = self._sock
        self._shared = True
        os.set_blocking(self._fd, True)
        self._read = lambda fd, size: sock.recv(size, _DONT_WAIT)
        self._write = lambda fd, data: sock.send(data, _SEND_FLAGS)

    # --- its end

    def _end(self, reason: str) -> None:
        """To CLOSED: nothing more is dispatched; the rest follows at the end of the turn."""
        if self._state == CLOSED:
            return
        self._state = CLOSED
        self._reason = reason
        if self._interest >= 0:
            if self._shared:
                self._loop.unregister(self._fd)
            else:
                self._loop.forget(self._fd)
            self._interest = UNWATCHED
            self._reading = False
        self._loop.at_end_of_turn(self._release)

    def _release(self) -> None:
        """At the end of the turn in which it ended: tell, and close the descriptor."""
        self._tell_closed()
        if self._shared:
            # A program, or what it left behind, has a copy: closing this one alone would not tell the peer.
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster
        self._close_descriptor()
        self._closed()

    def _close_descriptor(self) -> None:
        try:
            if self._made is not None:
                self._made.close()
            elif self._fd >= 0:
                os.close(self._fd)
        except OSError:
            pass  # what close(2) reports here is the peer's reset, once more
        self._fd = -1  # the number is soon another's

    def _tell_closed(self) -> None:
        """Tell the plugins that it is closed."""
        raise NotImplementedError

    def _closed(self) -> None:
        """The descriptor is closed."""
        if self._owner is not None:
            self._owner._stream_ended(self)

    def _reset_at_close(self) -> None:
        """Have the peer see a reset (of a unix socket: the end)."""
        if self._is_socket():
            try:
                if self._shared:
                    # SO_LINGER would wait for the last copy to be closed; this disconnects all of them (connect(2)).
                    _libc.connect(self._fd, _UNSPECIFIED, len(_UNSPECIFIED))
                else:
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            except OSError:
                pass  # the peer was faster

    # --- what it is

    @property
    def _sock(self) -> socket.socket:
        """The socket, for more than reading and writing; made when first used.

        :raises OSError: it is closed.
        """
        if self._made is None:
            if self._fd < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._made = socket.socket(fileno=self._fd)
            if self._made.gettimeout() is not None:  # a plugin has called socket.setdefaulttimeout
                self._made.settimeout(None)
                os.set_blocking(self._fd, self._shared)
        return self._made

    def _is_socket(self) -> bool:
        return True

    def _can_splice(self) -> bool:
        """Whether splice(2) may move bytes from it and to it."""
        return not self._shared

    def _socket_error(self) -> int:
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self._is_socket() else 0

    def _is_open(self) -> bool:
        return self._state == OPEN

    def _is_connecting(self) -> bool:
        return self._state == CONNECTING

    def _is_closed(self) -> bool:
        return self._state == CLOSED

    # --- the fault boundary

    def _guarded(self, what: str, callback: Callable[..., object], *arguments: object) -> None:
        """Call a plugin's callback; what it raises ends the connection that this belongs to, and nothing else."""
        try:
            callback(*arguments)
        except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() is its own fault too
            self._fault(what, error)

    def _fault(self, what: str, error: BaseException) -> None:
        if self._owner is not None:
            self._owner._fault(what, error)
