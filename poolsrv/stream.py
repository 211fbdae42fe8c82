"""Bytes in and out of one descriptor, with backpressure: the base of Connection, and the other side of a plugin.

Theory. A stream is in one of these states, and only the moves of this table exist:

    CONNECTING --> OPEN          the kernel says that the connection stands
    OPEN       --> CLOSING       close(): what is kept is still written
    CLOSING    --> LINGERING     all is written, but the peer is still sending
    any        --> CLOSED        all is written; or abort(), a reset, a failure

Reading. The engine does one ``recv`` per event into a buffer and calls ``on_readable``; what the plugin leaves there
stays. It stops asking the kernel for more (drops READ from the descriptor's interest) while the plugin has paused, at
end of stream, while ``congested``, and while the buffer is full. A level-triggered descriptor that nobody reads
would otherwise spin.

Writing. ``send`` gives the kernel what it takes at once, and keeps the rest in one bytearray until the descriptor is
writable. Above ``HIGH_WATER`` the stream is congested until it falls below ``LOW_WATER``.

Sockets stay blocking and each call passes MSG_DONTWAIT: O_NONBLOCK belongs to the open file, and a program that is
given the connection as its standard output must not see it.

Lingering. A socket that is closed with unread input in it is reset by the kernel, and the reset may overtake the last
bytes written. Who closes while its peer still sends therefore finishes sending first, and reads on for a while,
throwing away (what nginx calls lingering_close).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from .errors import LineTooLong
from .eventloop import ERROR, HANGUP, PEER_FINISHED, READ, WRITE, EventLoop, Timer
from .relay import Relay

if TYPE_CHECKING:
    from .connection import Connection

RECV_SIZE: Final = 65536  # bytes asked of the kernel per event
HIGH_WATER: Final = 262144  # bytes kept above which a stream is congested
LOW_WATER: Final = 65536  # bytes kept below which it no longer is
READ_AHEAD: Final = 262144  # bytes in the input buffer at which the engine stops reading
FLUSH_SIZE: Final = 262144  # bytes offered to the kernel per event
LINGER_TIME: Final = 2.0  # seconds
LINGER_LIMIT: Final = 16 * 1024 * 1024  # bytes thrown away

READABLE: Final = READ | ERROR | HANGUP  # each of them makes recv(2) return at once

CONNECTING, OPEN, CLOSING, LINGERING, CLOSED = range(5)

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"  # struct linger {1, 0}: close(2) sends a reset
BytesLike = bytes | bytearray | memoryview


class SocketLike(Protocol):
    """What a stream needs of its socket."""

    def fileno(self) -> int: ...
    def recv(self, bufsize: int, flags: int = ..., /) -> bytes: ...
    def send(self, data: Any, flags: int = ..., /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class PipeEnd:
    """One end of a pipe, made to look like a socket."""

    __slots__ = ("_fd",)
    is_pipe: Final = True

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return os.read(self._fd, bufsize)

    def send(self, data: Any, flags: int = 0, /) -> int:
        return os.write(self._fd, data)

    def shutdown(self, how: int, /) -> None:
        """A pipe has one direction: to finish sending is to close it, and the stream does that."""

    def close(self) -> None:
        os.close(self._fd)


class Stream:
    """A stream of bytes to and from somewhere: a pipe to a program, an outgoing connection.

    What a plugin may use is the members without an underscore. Callbacks are called as ``on_readable(stream)``,
    ``on_writable(stream)`` and, once, ``on_close(stream, error)``, where ``error`` is None or the exception (mostly
    an OSError) that ended the stream.

    :ivar eof: the peer has finished sending, and all its bytes have been offered to ``on_readable``.
    :ivar reset: the peer has reset the connection, or is gone; then ``eof`` is True too.
    :ivar congested: more than 256 KiB wait to be written; it ends when less than 64 KiB do.
    :ivar bytes_in, bytes_out: bytes received from and handed to the kernel.
    """

    __slots__ = (
        "__weakref__",
        "_fd",
        "_in",
        "_interest",
        "_linger",
        "_loop",
        "_on_close",
        "_on_readable",
        "_on_writable",
        "_out",
        "_owner",
        "_paused",
        "_pos",
        "_read_ahead",
        "_relay_in",
        "_relay_out",
        "_sends_eof",
        "_shared",
        "_sock",
        "_state",
        "bytes_in",
        "bytes_out",
        "congested",
        "eof",
        "error",
        "last_active",
        "reason",
        "reset",
    )

    def __init__(self, loop: EventLoop, sock: SocketLike, owner: Connection | None = None) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._owner = owner
        self._state = OPEN
        self._interest = -1  # not registered
        self._in = b""
        self._pos = 0  # where in _in the next byte is
        self._out: bytearray | None = None
        self._on_readable: Callable[[Any], object] | None = None
        self._on_writable: Callable[[Any], object] | None = None
        self._on_close: Callable[[Any, BaseException | None], object] | None = None
        self._paused = False
        self._read_ahead = READ_AHEAD
        self._sends_eof = False  # send_eof has been called
        self._shared = False  # a program has a copy of the descriptor
        self._linger: Timer | None = None
        self._relay_in: Relay | None = None  # takes what is read here
        self._relay_out: Relay | None = None  # brings what is written here
        self.bytes_in = 0
        self.bytes_out = 0
        self.congested = False
        self.eof = False
        self.reset = False
        self.error: BaseException | None = None
        self.reason = ""
        self.last_active = loop.now

    @property
    def on_readable(self) -> Callable[[Any], object] | None:
        """Called when there are new bytes, and once more at end of stream. Until it is set nothing is read."""
        return self._on_readable

    @on_readable.setter
    def on_readable(self, callback: Callable[[Any], object] | None) -> None:
        self._on_readable = callback
        self._update()

    @property
    def on_writable(self) -> Callable[[Any], object] | None:
        """Called when ``congested`` has gone from True to False."""
        return self._on_writable

    @on_writable.setter
    def on_writable(self, callback: Callable[[Any], object] | None) -> None:
        self._on_writable = callback

    @property
    def on_close(self) -> Callable[[Any, BaseException | None], object] | None:
        """Called once, when the stream is closed, with the exception that ended it or None."""
        return self._on_close

    @on_close.setter
    def on_close(self, callback: Callable[[Any, BaseException | None], object] | None) -> None:
        self._on_close = callback

    # --- reading

    def recv(self, limit: int = RECV_SIZE) -> bytes:
        """What is there now, at most ``limit`` bytes; ``b""`` when nothing is. End of stream is ``eof``."""
        data, pos = self._in, self._pos
        if pos or len(data) > limit:
            end = pos + limit
            taken = data[pos:end]
            if end >= len(data):
                self._in, self._pos = b"", 0
            else:
                self._pos = end
        else:
            taken = data
            self._in = b""
        if not self._interest & READ and self._state == OPEN:
            self._update()
        return taken

    def recv_line(self, limit: int = RECV_SIZE) -> bytes | None:
        """One line with its end (``\\n``), or None while there is none. At end of stream what is left is the last.

        :param limit: the most bytes that a line may have, its end included.
        :raises LineTooLong: there are ``limit`` bytes and no end of line; they stay in the buffer.
        """
        data, pos = self._in, self._pos
        newline = data.find(b"\n", pos, pos + limit)
        if newline >= 0:
            return self.recv(newline + 1 - pos)
        if len(data) - pos >= limit:
            raise LineTooLong(limit)
        if self.eof and len(data) > pos:
            return self.recv(limit)
        if limit > self._read_ahead:
            self._read_ahead = limit
            self._update()
        return None

    def peek(self) -> bytes:
        """All that is there now, without taking it."""
        return self._in[self._pos :]

    def unread(self, data: BytesLike) -> None:
        """Give bytes back: they are the next that ``recv`` returns."""
        if self._state != OPEN:
            return
        self._in = bytes(data) + self._in[self._pos :]
        self._pos = 0

    def pause_reading(self) -> None:
        """Ask for no more bytes, until ``resume_reading``; the peer is slowed down once the kernel's buffers are full.

        ``on_readable`` is not called meanwhile. A reset is noticed all the same.
        """
        self._paused = True
        self._update()

    def resume_reading(self) -> None:
        """Go on reading; where bytes are left in the buffer, ``on_readable`` is called soon."""
        if self._paused:
            self._paused = False
            self._update()
        if len(self._in) > self._pos:
            self._loop.at_end_of_turn(self._redeliver)

    # --- writing

    def send(self, data: BytesLike) -> None:
        """Send: what the kernel takes at once, the rest as soon as it can. Never blocks.

        After a close or a reset it does nothing.

        :raises ValueError: after ``send_eof``.
        """
        if self._state != OPEN and self._state != CONNECTING:
            return
        if self._sends_eof:
            raise ValueError("send() after send_eof()")
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        size = len(data)
        if self._out is None and self._relay_out is None and self._state == OPEN:
            if not size:
                return
            try:
                sent = self._sock.send(data, _FLAGS)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lost(error)
                return
            self.bytes_out += sent
            self.last_active = self._loop.now
            if sent == size:
                return
            data = memoryview(data)[sent:]
        self._keep(data)

    @property
    def unsent(self) -> int:
        """Bytes kept, because the kernel has not taken them yet."""
        return len(self._out) if self._out is not None else 0

    def send_eof(self) -> None:
        """Finish sending, after the bytes kept; receiving goes on. A pipe is closed by it."""
        if self._state in (OPEN, CONNECTING) and not self._sends_eof:
            self._sends_eof = True
            if self._out is None and self._relay_out is None and self._state == OPEN:
                self._shutdown_writing()

    def relay_to(self, target: Stream, limit: int | None = None, done: Callable[[int], object] | None = None) -> None:
        """Move the bytes that arrive here to ``target``, with backpressure, until end of stream.

        Bytes in the buffer go first. Meanwhile ``on_readable`` is not called; the relay holds both connections.

        :param limit: the most bytes to move; None: all.
        :param done: called once as ``done(moved)``, with the number of bytes moved, when the limit is reached, at end
            of stream, or when either side is gone. Without it ``target.send_eof()`` is called at end of stream.
        :raises ValueError: this stream is relayed somewhere, or something is relayed to ``target``.
        """
        Relay(self, target, limit, done).start()

    # --- the end

    def close(self, reason: str = "") -> None:
        """Close, after the bytes kept are written. Nothing more is received."""
        if self._state == CONNECTING:
            self.abort(reason)
        elif self._state == OPEN:
            self._state = CLOSING
            self.reason = reason
            self._in, self._pos = b"", 0
            if self._out is None and self._relay_out is None:
                self._loop.at_end_of_turn(self._wind_up)
            self._update()

    def abort(self, reason: str = "") -> None:
        """Close at once; bytes kept are thrown away. The peer sees a reset, and so no truncated stream as whole."""
        if self._state != CLOSED:
            if not self.reset and self._state != CONNECTING:
                self._reset_at_close()
            self._end(reason)

    # --- what the loop calls

    def start(self) -> None:
        """Have the loop watch the descriptor; with no interest too, for a reset is told all the same."""
        self._interest = self._wanted()
        self._loop.register(self._fd, self._interest, self._on_event)

    def _on_event(self, mask: int) -> None:
        if mask & READABLE and self._interest & READ:
            try:
                data = self._sock.recv(RECV_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost(error)
            else:
                if data:
                    self.bytes_in += len(data)
                    self.last_active = self._loop.now
                    self._in = self._in[self._pos :] + data if self._in else data
                    self._pos = 0
                    try:
                        self._on_readable(self)  # type: ignore[misc]  # no READ interest without it
                    except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() is its own fault too
                        self._fault("on_readable", error)
                    if self._in and len(self._in) - self._pos >= self._read_ahead:
                        self._update()
                else:
                    self._at_eof()
            if mask == READ:
                return
        if mask & WRITE and self._interest & WRITE:
            self._flush()
        elif mask & (ERROR | HANGUP | PEER_FINISHED) and not self._interest & READ:
            self._on_hangup(mask)

    def _on_event_relayed(self, mask: int) -> None:
        """In the place of ``_on_event`` while a relay has this stream on either side."""
        if mask & READABLE and self._interest & READ and self._relay_in is not None:
            self._relay_in.pump()
            mask &= ~READABLE
        if mask & WRITE and self._out is None and self._relay_out is not None:
            self._relay_out.pump()
            return
        if mask:
            self._on_event(mask)

    def _on_event_lingering(self, mask: int) -> None:
        """In the place of ``_on_event`` in LINGERING: throw away."""
        try:
            data = self._sock.recv(RECV_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._read_ahead -= len(data)
        if not data or self._read_ahead <= 0:
            self._end(self.reason)

    def _at_eof(self) -> None:
        self.eof = True
        self._update()
        if self._on_readable is not None and self._state == OPEN:
            try:
                self._on_readable(self)
            except BaseException as error:  # noqa: BLE001 - as in _on_event
                self._fault("on_readable", error)
        self._settle()

    def _redeliver(self) -> None:
        if self._state == OPEN and not self._paused and len(self._in) > self._pos and self._on_readable is not None:
            try:
                self._on_readable(self)
            except BaseException as error:  # noqa: BLE001 - as in _on_event
                self._fault("on_readable", error)
            self._settle()

    def _on_hangup(self, mask: int) -> None:
        """An error or a hang-up while nobody reads: a reset, or both directions are finished."""
        code = self._socket_error()
        if mask & ERROR or code:
            self._lost(OSError(code or errno.EPIPE, os.strerror(code or errno.EPIPE)))
        elif self._interest >= 0:
            # Level-triggered, it would be reported for ever; resume_reading and send bring it back (see _update).
            self._loop.unregister(self._fd)
            self._interest = -1

    def _flush(self) -> None:
        out = self._out
        if out is None:
            return
        try:
            with memoryview(out) as whole, whole[:FLUSH_SIZE] as view:
                sent = self._sock.send(view, _FLAGS)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
            return
        del out[:sent]
        self.bytes_out += sent
        self.last_active = self._loop.now
        if not out:
            self._out = None
        if self.congested and len(out) < LOW_WATER:
            self.congested = False
            self._update()
            if self._on_writable is not None and self._state == OPEN:
                try:
                    self._on_writable(self)
                except BaseException as error:  # noqa: BLE001 - as in _on_event
                    self._fault("on_writable", error)
        if self._out is None:
            self._update()
            self._flushed()

    def _flushed(self) -> None:
        """Nothing is kept any more: what waited for that."""
        if self._relay_out is not None:
            self._relay_out.pump()
        elif self._state == CLOSING:
            self._wind_up()
        elif self._sends_eof:
            self._shutdown_writing()
            self._settle()
        else:
            self._settle()

    # --- helpers

    def _keep(self, data: BytesLike) -> None:
        if self._out is None:
            self._out = bytearray(data)
        else:
            self._out += data
        if not self.congested and len(self._out) > HIGH_WATER:
            self.congested = True
        self._update()

    def _wanted(self) -> int:
        """The events of interest now. Relays of either side have their say in it."""
        wanted = 0
        if self._state == OPEN and not self.eof:
            if self._relay_in is not None:
                wanted = READ if self._relay_in.wants_read else 0
            elif not (
                self._paused
                or self.congested
                or self._on_readable is None
                or len(self._in) - self._pos >= self._read_ahead
            ):
                wanted = READ
        if self._out is not None or (self._relay_out is not None and self._relay_out.wants_write):
            wanted |= WRITE
        return wanted

    def _update(self) -> None:
        """Tell the loop which events are of interest, where that has changed."""
        if self._state in (CONNECTING, LINGERING, CLOSED):
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

    def _callback(self) -> Callable[[int], object]:
        relayed = self._relay_in is not None or self._relay_out is not None
        return self._on_event_relayed if relayed else self._on_event

    def _relays_changed(self) -> None:
        """A relay has come or gone: dispatch events accordingly."""
        if self._state in (OPEN, CLOSING):
            if self._interest >= 0:
                self._loop.set_callback(self._fd, self._callback())
            self._update()

    def _relay_in_finished(self) -> None:
        """What arrives goes to ``on_readable`` again: what is left in the buffer, or the end of stream."""
        if self.eof and self._state == OPEN:
            self._loop.at_end_of_turn(self._at_eof)
        elif len(self._in) > self._pos:
            self._loop.at_end_of_turn(self._redeliver)

    def _relay_out_finished(self) -> None:
        """What was sent, finished or closed meanwhile has waited for the relay."""
        if self._out is None:
            self._flushed()

    def _shutdown_writing(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._lost(error)

    def _socket_error(self) -> int:
        if isinstance(self._sock, socket.socket):
            return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return 0

    def _reset_at_close(self) -> None:
        if isinstance(self._sock, socket.socket):
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            except OSError:
                pass  # the peer was faster

    def _settle(self) -> None:
        """After end of stream: close, once nothing is left to write."""
        if self.eof and self._state == OPEN and self._out is None and self._relay_in is None and not self._is_held():
            self.close("eof")

    def _is_open(self) -> bool:
        return self._state == OPEN

    def _is_connecting(self) -> bool:
        return self._state == CONNECTING

    def _is_held(self) -> bool:
        return self._relay_out is not None

    def _lost(self, error: OSError) -> None:
        """The peer is gone, as an event or a system call has told."""
        if self._state == CLOSED:
            return
        self.eof = self.reset = True
        self.error = error
        self._end("reset")

    def _wind_up(self) -> None:
        """In CLOSING, all written: close now, unless the peer is still sending."""
        if self._state != CLOSING:
            return
        if not self.eof and isinstance(self._sock, socket.socket):
            try:
                unread = self._sock.recv(RECV_SIZE, socket.MSG_DONTWAIT)
            except OSError:
                unread = b""
            if unread:
                self._start_lingering()
                return
        self._end(self.reason)

    def _start_lingering(self) -> None:
        self._shutdown_writing()
        if self._state != CLOSING:
            return
        self._state = LINGERING
        self._read_ahead = LINGER_LIMIT
        if self._interest < 0:
            self._loop.register(self._fd, READ, self._on_event_lingering)
        else:
            self._loop.modify(self._fd, READ)
            self._loop.set_callback(self._fd, self._on_event_lingering)
        self._interest = READ
        self._linger = self._loop.call_later(LINGER_TIME, lambda: self._end(self.reason))

    def _end(self, reason: str) -> None:
        """To CLOSED: nothing more is dispatched; the rest follows at the end of the turn."""
        if self._state == CLOSED:
            return
        self._state = CLOSED
        self.reason = reason
        self.congested = False
        self._in, self._pos, self._out = b"", 0, None
        if self._linger is not None:
            self._linger.cancel()
        if self._interest >= 0:
            if self._shared:
                self._loop.unregister(self._fd)
            else:
                self._loop.forget(self._fd)
            self._interest = -1
        self._loop.at_end_of_turn(self._dispose)

    def _dispose(self) -> None:
        """At the end of the turn in which the stream ended: tell, and close the descriptor."""
        if self._relay_out is not None:
            self._relay_out.finish()
        if self._relay_in is not None:
            self._relay_in.source_ended()
        self._tell_closed()
        self._close_descriptor()
        self._gone()

    def _tell_closed(self) -> None:
        if self._on_close is not None:
            try:
                self._on_close(self, self.error)
            except BaseException as error:  # noqa: BLE001 - as in _on_event
                self._fault("on_close", error)

    def _gone(self) -> None:
        if self._owner is not None:
            self._owner._stream_ended(self)

    def _close_descriptor(self) -> None:
        if self._shared:
            # A program, or what it left behind, has a copy: closing this one alone would not tell the peer.
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster
        try:
            self._sock.close()
        except OSError:
            pass  # what close(2) reports here is the peer's reset, once more

    def _fault(self, callback: str, error: BaseException) -> None:
        """The fault boundary: a callback of this stream has raised."""
        if self._owner is not None:
            self._owner._fault(callback, error)
