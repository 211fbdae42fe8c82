"""One descriptor in the event loop: the states, the events it is watched for, its end, and the fault boundary.

Theory. A stream's states, and the moves between them, are named here; stream.py says what happens in each.

A descriptor that ends in the middle of a turn gets no events from that moment on. Its owner is told at the end of the
turn, so never from inside another callback, and then the descriptor is closed.

Descriptors are non-blocking, and read(2) and write(2) serve sockets and pipes alike: in CPython they cost half as much
as the socket's own ``recv`` and ``send``, and most connections never need a socket object. But O_NONBLOCK belongs to
the open file, and a program that is given the connection as its standard output must not see it: a shared descriptor
is blocking, and each call passes MSG_DONTWAIT (``SharedTransport``).

A transport may have bytes, or the end of stream, of which the kernel knows nothing: the event for them would never
come. A descriptor with such a transport is on the ready list: it is looked at again at the end of the turn.

Every connection goes through this module, so what a new connection calls is kept cheap. Derived classes name their base
there, because ``super()`` makes an object each time. The plain transport is recognized by its identity, because looking
up an attribute of its class takes longer.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from ..core import forked_copies
from ..core.event_loop import READ, EventLoop, Timer
from ..core.libc import libc
from ..core.native import mypyc_attr
from .guarded_calls import guarded_call
from .transport import RAW, SharedTransport, Transport

CONNECTING: Final = 0
OPEN: Final = 1
CLOSING: Final = 2
LINGERING: Final = 3
CLOSED: Final = 4
STATE_NAMES: Final = ("CONNECTING", "OPEN", "CLOSING", "LINGERING", "CLOSED")

# Each state with those that may come next. A stream begins as CONNECTING or as OPEN.
MOVES: Final = {
    CONNECTING: frozenset({OPEN, CLOSING, CLOSED}),
    OPEN: frozenset({CLOSING, CLOSED}),
    CLOSING: frozenset({LINGERING, CLOSED}),
    LINGERING: frozenset({CLOSED}),
    CLOSED: frozenset[int](),
}

# In the place of an interest: not registered. READ and WRITE are not in it.
UNWATCHED: Final = -8

RESET_AT_CLOSE: Final = b"\1\0\0\0\0\0\0\0"  # struct linger {1, 0}: close(2) sends a reset
CLOSE_AT_ONCE: Final = bytes(8)  # struct linger {0, 0}: it does not wait
_UNSPECIFIED: Final = bytes(16)  # struct sockaddr with AF_UNSPEC


class IllegalMove(Exception):
    """The engine has tried a move that the table of states does not have: a bug of its own."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(f"a stream can't go from {STATE_NAMES[before]} to {STATE_NAMES[after]}")


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


@mypyc_attr(allow_interpreted_subclasses=True)
class Descriptor:
    """The base of ``Stream``, which says which events are wanted and what to do with them.

    For the engine: ``_start``, ``_await_opening``, ``_stage_over``, ``_end``, ``_close_descriptor``, ``_abandon``,
    ``_guarded``, ``_is_connecting``, ``_is_open`` and ``_is_closed``.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_fd",
        "_interest",
        "_loop",
        "_made",
        "_on_ready_list",
        "_opening",
        "_owner",
        "_read",
        "_reading",
        "_reason",
        "_shared",
        "_state",
        "_timer",
        "_transport",
        "_write",
    )

    # Stream sets them: a constructor here would cost every new connection another call.
    _loop: EventLoop
    _fd: int
    _made: socket.socket | None  # see _sock
    _owner: Owner | None
    _transport: Transport
    _read: Callable[[int, int], bytes]  # as the transport has them
    _write: Callable[[int, Any], int]
    _state: int
    _interest: int
    _reading: bool  # READ is in _interest; of a new connection that is not watched yet: it will be
    _on_ready_list: bool
    _opening: bool  # a stage before OPEN gets the events
    _timer: Timer | None  # of such a stage, or of LINGERING
    _shared: bool  # a program has a copy of the descriptor
    _error: BaseException | None  # that ended it
    _reason: str  # of its end

    def _move(self, state: int) -> None:
        """Go to another state.

        :raises IllegalMove: the table has no such move.
        """
        if state not in MOVES[self._state]:
            raise IllegalMove(self._state, state)
        self._state = state

    def _use(self, transport: Transport) -> None:
        """Read and write through this transport from now on."""
        self._transport = transport
        self._read = transport.read
        self._write = transport.write

    # --- being watched

    def _start(self) -> None:
        """Have the loop watch the descriptor; with no interest too, because a reset is reported all the same."""
        self._interest = wanted = self._wanted()
        self._reading = wanted & READ != 0
        self._loop.register(self._fd, wanted, self._callback())
        if self._transport is not RAW and self._transport.ready:
            self._look_again()

    def _update(self) -> None:
        """Tell the loop which events are of interest, where that has changed."""
        if self._state != OPEN and (self._state != CLOSING or self._opening):
            return
        wanted = self._wanted()
        if wanted != self._interest:
            if self._interest >= 0:
                self._loop.modify(self._fd, wanted)
            elif wanted:
                self._loop.register(self._fd, wanted, self._callback())
            else:
                self._reading = False
                return
            self._interest = wanted
            self._reading = wanted & READ != 0
        if self._transport is not RAW and self._transport.ready:
            self._look_again()

    def _unwatch(self) -> None:
        """Get no events, until something is wanted again."""
        if self._interest >= 0:
            self._loop.unregister(self._fd)
            self._interest = UNWATCHED
            self._reading = False

    def _look_again(self) -> None:
        """Put it on the ready list."""
        if not self._on_ready_list and self._reading:
            self._on_ready_list = True
            self._loop.at_end_of_turn(self._look)

    def _look(self) -> None:
        self._on_ready_list = False
        if self._transport.ready and self._reading and self._state == OPEN:
            self._callback()(READ)

    def _wanted(self) -> int:
        """The events of interest now."""
        raise NotImplementedError

    def _callback(self) -> Callable[[int], object]:
        """What the loop is to call with events."""
        raise NotImplementedError

    def _share(self) -> None:
        """A program is about to get a copy of the descriptor."""
        self._use(SharedTransport(self._sock))
        self._shared = True
        os.set_blocking(self._fd, True)

    # --- before it is open

    def _await_opening(
        self,
        interest: int,
        on_event: Callable[[int], object],
        timeout: float = 0.0,
        too_late: Callable[[], object] | None = None,
    ) -> None:
        """Begin, or go on with, a stage before OPEN: a connect(2), a header, a handshake. It may call this again.

        :param interest: the events that the stage needs now.
        :param on_event: called with them.
        :param timeout: seconds after which ``too_late()`` is called, unless the stage is over by then; 0: never.
        """
        self._opening = True
        if self._interest < 0:
            self._loop.register(self._fd, interest, on_event)
        else:
            self._loop.set_callback(self._fd, on_event)
            if interest != self._interest:
                self._loop.modify(self._fd, interest)
        self._interest = interest
        if timeout and too_late is not None:
            self._timer = self._loop.call_later(timeout, too_late)

    def _stage_over(self) -> None:
        """End a stage; it is not watched until the next one, or until it is open."""
        self._cancel_timer()
        self._unwatch()

    def _opened(self) -> None:
        """End the last stage. What was closed meanwhile, with bytes kept, stays in CLOSING."""
        self._opening = False
        if self._timer is not None:
            self._cancel_timer()
        if self._state == CONNECTING:
            self._state = OPEN

    def _is_connecting(self) -> bool:
        return self._opening or self._state == CONNECTING

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- its end

    def _end(self, reason: str) -> None:
        """Go to CLOSED: nothing more is dispatched, and the rest follows at the end of the turn. Harmless when
        repeated: the first reason counts."""
        if self._state == CLOSED:
            return
        self._state = CLOSED  # from any other
        self._reason = reason
        if self._interest >= 0:
            # Closing it is not enough for epoll: another process may still have the file, such as the dispatcher, which
            # closes its copy when it gets to run. Events of the old file would go to the number's next owner.
            try:
                self._loop.unregister(self._fd)
            except OSError:
                pass  # a plugin has closed what it gave to open_stream
            self._interest = UNWATCHED
            self._reading = False
        if self._timer is not None:
            self._cancel_timer()
        self._on_ended()
        self._loop.at_end_of_turn(self._release)

    def _on_ended(self) -> None:
        """It is in CLOSED: let go of what is not needed any more. Called once."""

    def _release(self) -> None:
        """At the end of the turn in which it ended: tell, and close the descriptor."""
        self._tell_closed()
        self._shut_down_and_close()
        self._closed()

    def _shut_down_and_close(self) -> None:
        if self._shared:
            # A program, or what it left behind, has a copy: closing this one alone would not tell the peer. And a
            # program may have set SO_LINGER: with that, close(2) waits for a peer that does not read, even here.
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_AT_ONCE)
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        try:
            if self._made is not None:
                self._made.close()
            elif self._fd >= 0:
                os.close(self._fd)
        except OSError:
            pass  # what close(2) reports here is the peer's reset, once more
        self._fd = -1  # the number is soon another's

    def _abandon(self) -> None:
        """In a copy of the process: close its copy of the descriptor, and do nothing more."""
        self._state = CLOSED
        self._interest = UNWATCHED
        self._reading = False
        self._close_descriptor()

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
                    libc.connect(self._fd, _UNSPECIFIED, len(_UNSPECIFIED))
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

    def _fileno(self) -> int:
        return self._fd

    def _is_socket(self) -> bool:
        return True

    def _can_splice(self) -> bool:
        return self._transport.can_splice

    def _socket_error(self) -> int:
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self._is_socket() else 0

    def _is_open(self) -> bool:
        return self._state == OPEN

    def _is_closed(self) -> bool:
        return self._state == CLOSED

    # --- the fault boundary

    def _guarded(self, what: str, callback: Callable[..., object], *arguments: object) -> None:
        """Call a plugin's callback; what it raises ends the connection that this belongs to, and nothing else."""
        guarded_call(self, what, callback, arguments)

    def _fault(self, what: str, error: BaseException) -> None:
        forked_copies.end_if_made(what)
        if self._owner is not None:
            self._owner._fault(what, error)
