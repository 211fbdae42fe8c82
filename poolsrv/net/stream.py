"""Bytes in and out of one descriptor, with backpressure: the base of Connection, and the other side of a plugin.

Theory. A stream is in one of these states (``MOVES`` in descriptor.py has the moves; there are no others):

    CONNECTING --> OPEN          connect(2), and a handshake or a header where there is one, are done
    CONNECTING --> CLOSING       close(), with bytes kept: they are written once the connection is established
    OPEN       --> CLOSING       close(): the bytes kept are still written
    CLOSING    --> LINGERING     all is written, but the peer may still be sending
    OPEN       --> CLOSED        at end of stream, once nothing is left to write and nothing holds it
    any        --> CLOSED        all is written; or abort(), a reset, a failure

What a call, or an event, does in each of them:

                  CONNECTING    OPEN            CLOSING      LINGERING    CLOSED
    send          keeps         writes, keeps   nothing      nothing      nothing
    send_eof      remembers     after the kept  nothing      nothing      nothing
    recv          b""           takes           b""          b""          b""
    close         CLOSED (1)    CLOSING         nothing      nothing      nothing
    abort         CLOSED        CLOSED, reset   CLOSED       CLOSED       nothing
    peer's data   -             on_readable     thrown away  thrown away  -
    peer's end    -             on_readable     eof (2)      CLOSED       -
    peer's reset  CLOSED        CLOSED          CLOSED       CLOSED       -

    (1) CLOSING, where bytes are kept.
    (2) Where it is noticed: a stream that throws nothing away yet reads no more before all is written.

Reading. The engine reads into the buffer (input_buffer.py), at most 64 KiB at a time, and calls ``on_readable``; what
the plugin leaves there stays. It stops asking the kernel for more (drops READ from the descriptor's interest) while the
plugin has paused, at end of stream, while too much is kept for the peer, and while the buffer is full. A
level-triggered descriptor that nobody reads would otherwise spin.

Writing. ``send`` gives the kernel what it takes at once, and keeps the rest in one bytearray until the descriptor is
writable. Above ``HIGH_WATER`` the stream is congested until it falls below ``LOW_WATER``.

Closing. A socket that is closed while its peer still sends answers with a reset, and the reset may overtake the last
bytes written. So the side that closes first finishes sending first, and reads on for a while (Apache and nginx call it
lingering close). A client that has seen the end closes, and that ends it. Some clients send all that they have before
they read. So what they send is thrown away already while bytes are kept for them: otherwise each side would wait for
the other.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..core.event_loop import ERROR, HANGUP, PEER_FINISHED, READ, WRITE, EventLoop
from ..core.native import mypyc_attr
from .descriptor import CLOSED, CLOSING, CONNECTING, LINGERING, OPEN, UNWATCHED, Descriptor, Owner
from .file_sender import FileSender
from .input_buffer import READ_AHEAD, RECV_SIZE, BytesLike, InputBuffer
from .relay import Mover, Relay
from .transport import RAW

if TYPE_CHECKING:
    from .tls import Tls


MAX_EXTRA_READS: Final = 3  # per event, each after a read that has filled its buffer: there is probably more

HIGH_WATER: Final = 262144  # bytes kept above which a stream is congested
LOW_WATER: Final = 65536  # bytes kept below which it no longer is
FLUSH_SIZE: Final = 262144  # bytes offered to the kernel per event

LINGER_TIME: Final = 30.0  # seconds that a peer may go on sending
LINGER_LOOK: Final = 2.0  # seconds from one look at what it has sent to the next
LINGER_LEAST: Final = 2048  # bytes that have to come from one look to the next

READABLE: Final = READ | ERROR | HANGUP  # each of them makes recv(2) return at once


@mypyc_attr(allow_interpreted_subclasses=True)
class Stream(InputBuffer):
    """A stream of bytes to and from somewhere: a pipe to a program, an outgoing connection.

    What a plugin may use is the members without an underscore. Callbacks are called as ``on_readable(stream)``,
    ``on_writable(stream)`` and, once, ``on_close(stream, error)``, where ``error`` is None or the exception (mostly
    an OSError) that ended the stream.

    For the engine: what ``RelayEnd`` has, ``_close_if_done`` (for what has held it) and ``_is_held``.

    :param fd: the descriptor, which belongs to this object from now on; a socket's, unless ``_is_socket`` says
        otherwise. -1: there is none.
    :param owner: the connection that it belongs to; None: it is one.
    :ivar eof: the peer has finished sending, and all its bytes have been offered to ``on_readable``.
    :ivar reset: the peer has reset the connection, or is gone; then ``eof`` is True too.
    :ivar congested: more than 256 KiB wait to be written; it ends when less than 64 KiB do.
    :ivar bytes_in: bytes received from the kernel.
    :ivar bytes_out: bytes handed to the kernel.
    """

    __slots__ = (
        "_call_due",
        "_eof_sent",
        "_eof_told",
        "_last_active",
        "_linger_until",
        "_lingered",
        "_on_close",
        "_on_readable",
        "_on_writable",
        "_out",
        "_paused",
        "_relay_in",
        "_relay_out",
        "_sends_eof",
        "bytes_out",
        "congested",
        "reset",
    )

    _linger_until: float  # in LINGERING only
    _lingered: int  # bytes thrown away since the latest look

    def __init__(self, loop: EventLoop, fd: int, owner: Owner | None = None) -> None:
        self._loop = loop  # this and what follows is of Descriptor
        self._fd = fd
        self._owner = owner
        self._transport = RAW
        self._read = os.read  # as RAW has them
        self._write = os.write
        self._state = OPEN
        self._interest = UNWATCHED
        self._made = self._timer = self._error = None
        self._reading = self._on_ready_list = self._opening = self._shared = False
        self._reason = ""
        if fd >= 0:
            os.set_blocking(fd, False)
        self._in = b""  # this and what follows is of InputBuffer
        self._pos = 0
        self._sought = None
        self._read_ahead = READ_AHEAD
        self.bytes_in = 0
        self.eof = False
        self._paused = False
        self._call_due = False  # on_readable will be called at the end of the turn
        self._eof_told = False  # on_readable has been called with eof, and has returned
        self._on_readable: Callable[[Any], object] | None = None
        self._relay_in: Relay | None = None  # takes what is read here
        self._out: bytearray | None = None
        self._on_writable: Callable[[Any], object] | None = None
        self._on_close: Callable[[Any, BaseException | None], object] | None = None
        self._sends_eof = False  # send_eof has been called
        self._eof_sent = False  # and the kernel has been told
        self._relay_out: Mover | None = None  # brings what is written here
        self._last_active = loop.now
        self.bytes_out = 0
        self.congested = False
        self.reset = False

    def _start(self) -> None:
        if (
            self._transport is RAW
            and self._on_readable is not None
            and self._out is None
            and not (self._in or self._paused or self.eof)
            and self._relay_in is None
            and self._relay_out is None
        ):
            # As below, for a stream that has nothing unusual: it is to be read.
            self._interest = READ
            self._reading = True
            self._loop.register(self._fd, READ, self._on_event)
        else:
            Descriptor._start(self)

    # --- callbacks, and what it is

    @property
    def on_readable(self) -> Callable[[Any], object] | None:
        """Called when there are new bytes, and once more at end of stream. Until it is set nothing is read."""
        return self._on_readable

    @on_readable.setter
    def on_readable(self, callback: Callable[[Any], object] | None) -> None:
        before, self._on_readable = self._on_readable, callback
        if before is not None and callback is not None:
            return  # it is watched for the same events
        untouched = self._interest == UNWATCHED and self._state == OPEN and self._out is None and not self._in
        if untouched and callback is not None and not self.eof and not self._paused and self._is_plain():
            self._interest = READ
            self._reading = True
            self._loop.register(self._fd, READ, self._on_event)
        else:
            self._update()

    def _is_plain(self) -> bool:
        """Whether it has no relay, and no transport but the plain one."""
        return self._transport is RAW and self._relay_in is None and self._relay_out is None

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

    @property
    def tls(self) -> Tls | None:
        """What was agreed on with the peer in the TLS handshake; None without TLS, and before it is done."""
        return self._transport.tls

    # --- reading

    def pause_reading(self) -> None:
        """Ask for no more bytes, until ``resume_reading``; the peer is slowed down once the kernel's buffers are full.

        ``on_readable`` is not called meanwhile. A reset is noticed all the same.
        """
        self._paused = True
        self._update()

    def resume_reading(self) -> None:
        """Go on reading; where bytes are left in the buffer, ``on_readable`` is called at the end of this turn."""
        if self._paused:
            self._paused = False
            self._update()
        self._call_for_rest()

    # --- writing

    def send(self, data: BytesLike) -> None:
        """Send: what the kernel takes at once, the rest as soon as it can. Never blocks.

        After a close or a reset it does nothing.

        :raises ValueError: after ``send_eof``.
        """
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        if not data:
            return
        if self._out is None and self._state == OPEN and not self._sends_eof and self._relay_out is None:
            write = self._write
            try:
                sent = write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._connection_lost(error)
                return
            self.bytes_out += sent
            self._last_active = self._loop.now
            if sent == len(data):
                return
            self._buffer_write(memoryview(data)[sent:])
        elif self._state == OPEN or self._state == CONNECTING:
            if self._sends_eof:
                raise ValueError("send() after send_eof()")
            self._buffer_write(data)

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
                if self._eof_told:
                    self._loop.at_end_of_turn(self._close_if_done)

    # --- moving

    def relay_to(self, target: Stream, limit: int | None = None, done: Callable[[int], object] | None = None) -> None:
        """Move the bytes that arrive here to ``target``, with backpressure, until end of stream.

        Bytes in the buffer go first. Meanwhile ``on_readable`` is not called, the relay alone decides when to read
        (``pause_reading`` has no effect), it holds both connections, and ``send_eof`` and ``close`` of the target wait
        for what is under way. What is sent to the target meanwhile goes somewhere in between.

        :param limit: the most bytes to move; None: all.
        :param done: called once as ``done(moved)``, with the number of bytes moved, when the limit is reached, at end
            of stream, or when either side is gone. Without it ``target.send_eof()`` is called at end of stream.
        :raises ValueError: this stream is relayed somewhere, or something is relayed to ``target``.
        """
        if self._relay_in is not None:
            raise ValueError("what arrives on this stream is being relayed")
        if target._relay_out is not None:
            raise ValueError("something is being relayed to the target, or a file sent on it")
        Relay(self, target, limit, done).start()

    def send_file(self, fd: int, offset: int, count: int, done: Callable[[int], object] | None = None) -> None:
        """Send a part of a file, with backpressure, in the kernel if that is possible (sendfile(2)). Never blocks
        for a slow peer, and keeps nothing in memory for it.

        It holds the connection, and ``send_eof`` and ``close`` wait for it, as for bytes kept; these go first. What is
        sent meanwhile goes somewhere in between.

        :param fd: the descriptor of a regular file. It stays the caller's, and has to stay open until ``done``; its
            position is neither used nor moved.
        :param offset: where in the file to begin, in bytes.
        :param count: bytes to send.
        :param done: called once as ``done(sent)``, with the number of bytes sent: fewer than ``count`` where the file
            is shorter, or can't be read, or the peer is gone. Never before this has returned.
        :raises ValueError: after ``send_eof``; something is being relayed to this stream, or a file sent on it.
        """
        if self._sends_eof:
            raise ValueError("send_file() after send_eof()")
        if self._relay_out is not None:
            raise ValueError("something is being relayed to this stream, or a file sent on it")
        FileSender(self, fd, offset, count, done).start()

    @property
    def relay_waits(self) -> bool:
        """True while a relay from here waits for its target to take more: it is not this peer that is slow."""
        return self._relay_in is not None and not self._relay_in.wants_read

    # --- closing

    def close(self, reason: str = "") -> None:
        """Close, after the bytes kept are written. Nothing more is received."""
        if self._state == OPEN:
            self._begin_close(reason)
            for relay in (self._relay_in, self._relay_out):
                if relay is not None:
                    self._loop.at_end_of_turn(relay.pump)  # it ends once nothing is in transit
            if self._out is None and self._relay_out is None:
                self._loop.at_end_of_turn(self._finish_close)
                if self.eof or self._interest < 0:
                    return  # nothing will come, or is to be noticed in this turn: the next step is at its end
            if self._interest >= 0:
                self._loop.set_callback(self._fd, self._callback())  # an event may be next in this turn
            self._update()
        elif self._state == CONNECTING:
            if self._out is None:
                self.abort(reason)
            else:
                self._begin_close(reason)

    def abort(self, reason: str = "") -> None:
        """Close at once; bytes kept are thrown away. The peer sees a reset, and so no truncated stream as whole."""
        if self._state != CLOSED:
            if not self.reset and self._state != CONNECTING:
                self._reset_at_close()
            self._end(reason)

    # --- what the loop calls

    def _on_event(self, mask: int, again: int = MAX_EXTRA_READS) -> None:
        if self._reading and (mask == READ or mask & READABLE):
            read, on_readable = self._read, self._on_readable  # attributes that are called cost more: no method's place
            try:
                data = read(self._fd, RECV_SIZE)
            except BlockingIOError:
                pass
            except OSError as error:
                self._connection_lost(error)
            else:
                if data:
                    size = len(data)
                    self.bytes_in += size
                    self._last_active = self._loop.now
                    if self._in:
                        self._append(data)
                    else:
                        self._in = data
                    try:
                        on_readable(self)  # type: ignore[misc]  # no READ interest without it
                    except BaseException as error:  # noqa: BLE001 - as in _guarded, without its call
                        self._fault("on_readable", error)
                    if self._in and len(self._in) - self._pos >= self._read_ahead:
                        self._update()
                    if size == RECV_SIZE and again and self._reading and self._relay_in is None:
                        self._on_event(READ, again - 1)
                else:
                    self._at_eof()
            if mask == READ:
                return
        if mask & WRITE and self._interest & WRITE:
            self._flush()
        elif mask & (ERROR | HANGUP | PEER_FINISHED) and not self._reading and self._state != CLOSED:
            self._on_hangup(mask)

    def _on_event_slow(self, mask: int) -> None:
        """In the place of ``_on_event`` while a relay has this stream on either side, or its transport may have bytes
        that the kernel knows nothing of."""
        if mask & READABLE and self._reading and self._relay_in is not None:
            self._relay_in.pump()
            mask &= ~READABLE
        if mask & WRITE and self._out is None and self._relay_out is not None:
            self._relay_out.pump()
            return
        if mask:
            self._on_event(mask)
        if self._transport.ready:
            self._look_again()

    def _on_event_closing(self, mask: int) -> None:
        """In the place of ``_on_event`` in CLOSING."""
        if self._reading and mask & READABLE:
            try:
                if not self._read(self._fd, RECV_SIZE):
                    self.eof = True
                    self._update()
            except BlockingIOError:
                pass
            except OSError as error:
                self._connection_lost(error)
                return
        if mask & WRITE:
            self._flush()
        elif mask & (ERROR | HANGUP) and not self._reading:
            self._on_hangup(mask)

    def _on_event_lingering(self, mask: int) -> None:
        """In the place of ``_on_event`` in LINGERING."""
        try:
            data = self._read(self._fd, RECV_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._lingered += len(data)
        if not data:
            self._end(self._reason)

    def _callback(self) -> Callable[[int], object]:
        if self._relay_in is not None or self._relay_out is not None:
            return self._on_event_slow
        if self._state == CLOSING:
            return self._on_event_closing
        return self._on_event if self._transport is RAW or self._transport.is_plain else self._on_event_slow

    def _wanted(self) -> int:
        wanted = READ if self._wants_read() and (not self.congested or self._relay_in is not None) else 0
        if self._state == CLOSING and self._relay_out is None and self._throws_away():
            wanted = READ
        if self._out is not None or (self._relay_out is not None and self._relay_out.wants_write):
            wanted |= WRITE
        return wanted

    def _wants_read(self) -> bool:
        if self._state != OPEN or self.eof:
            return False
        if self._relay_in is not None:
            return self._relay_in.wants_read
        return not self._paused and self._on_readable is not None and len(self._in) - self._pos < self._read_ahead

    def _throws_away(self) -> bool:
        """Whether what comes in CLOSING is to be read and thrown away, while there is something to be written."""
        return self._always_lingers() and not self.eof

    def _on_hangup(self, mask: int) -> None:
        """An error or a hang-up while nobody reads: a reset, or both directions are finished."""
        if self._state == CLOSED:
            return
        code = self._socket_error()
        if mask & ERROR or code:
            self._connection_lost(OSError(code or errno.EPIPE, os.strerror(code or errno.EPIPE)))
        else:
            # Level-triggered, it would be reported for ever; resume_reading and send bring it back (see _update).
            self._unwatch()

    # --- the reading side

    def _call_for_rest(self) -> None:
        """Have ``on_readable`` called without new bytes: for those in the buffer, or for the end of stream."""
        if not self._call_due and (len(self._in) > self._pos or (self.eof and not self._eof_told)):
            self._call_due = True
            self._loop.at_end_of_turn(self._call_again)

    def _call_again(self) -> None:
        self._call_due = False
        if self._state != OPEN or self._relay_in is not None:
            return
        if self.eof and not self._eof_told:
            self._at_eof()  # a relay has met it; if it were not told, it would never be closed
        elif len(self._in) > self._pos and not self._paused:
            if self._on_readable is not None:
                self._guarded("on_readable", self._on_readable, self)
            self._close_if_done()

    def _at_eof(self) -> None:
        """Nothing more will come: say so, once."""
        self.eof = True
        if self._state != OPEN:
            return
        on_readable = self._on_readable
        if on_readable is not None:
            try:
                on_readable(self)
            except BaseException as error:  # noqa: BLE001 - as in _guarded, without its call
                self._fault("on_readable", error)
        self._eof_told = True
        self._close_if_done()
        if self._state == OPEN:
            self._update()

    # --- the writing side

    def _buffer_write(self, data: BytesLike) -> None:
        if self._out is None:
            self._out = bytearray(data)
        else:
            self._out += data
        if not self.congested and len(self._out) > HIGH_WATER:
            self.congested = True
        self._update()

    def _flush(self) -> None:
        out = self._out
        if out is None:
            return
        try:
            with memoryview(out) as whole, whole[:FLUSH_SIZE] as view:
                sent = self._write(self._fd, view)
        except BlockingIOError:
            return
        except OSError as error:
            self._connection_lost(error)
            return
        del out[:sent]
        self.bytes_out += sent
        self._last_active = self._loop.now
        if not out:
            self._out = None
        if self.congested and len(out) < LOW_WATER:
            self.congested = False
            self._update()
            if self._on_writable is not None and self._state == OPEN:
                self._guarded("on_writable", self._on_writable, self)
        if self._out is None:
            self._update()
            self._flushed()

    def _flushed(self) -> None:
        """Nothing is kept any more: do what waited for that."""
        if self._relay_out is not None:
            self._relay_out.pump()
        elif self._state == CLOSING:
            self._finish_close()
        elif self._state == OPEN:
            if self._sends_eof:
                self._shutdown_writing()
            self._close_if_done()

    def _shutdown_writing(self) -> None:
        if self._eof_sent:
            return  # a second shutdown(2) fails where the peer has finished too, and would look like a reset
        self._eof_sent = True
        try:
            self._finish_sending()
        except OSError as error:
            self._connection_lost(error)

    def _finish_sending(self) -> None:
        self._transport.finish()
        self._sock.shutdown(socket.SHUT_WR)

    # --- the end

    def _is_held(self) -> bool:
        return self._relay_in is not None or self._relay_out is not None

    def _close_if_done(self) -> None:
        """After end of stream: close, once nothing is left to write and nothing holds it."""
        if self._eof_told and self._state == OPEN and self._out is None and not self._is_held():
            # Nothing is kept and nothing will come: there is nothing to wait for.
            if self._transport is not RAW:
                self._transport.finish()
            self._end("eof")

    def _begin_close(self, reason: str) -> None:
        self._move(CLOSING)
        self._reason = reason
        self._in, self._pos = b"", 0

    def _finish_close(self) -> None:
        """In CLOSING, all written: close now, unless the peer is, or may be, still sending."""
        if self._state != CLOSING:
            return
        self._transport.finish()
        if self.eof or not self._is_socket():
            self._end(self._reason)
            return
        try:
            goes_on = bool(self._read(self._fd, RECV_SIZE))
        except BlockingIOError:
            goes_on = self._always_lingers()
        except OSError:
            goes_on = False
        if goes_on:
            self._start_lingering()
        else:
            self._end(self._reason)

    def _always_lingers(self) -> bool:
        """Whether to wait for the peer to close even where nothing from it is waiting to be read."""
        return False

    def _start_lingering(self) -> None:
        try:
            self._finish_sending()
        except OSError:
            self._end(self._reason)  # the peer was faster
            return
        self._move(LINGERING)
        if self._interest < 0:
            self._loop.register(self._fd, READ, self._on_event_lingering)
        else:
            if self._interest != READ:
                self._loop.modify(self._fd, READ)
            self._loop.set_callback(self._fd, self._on_event_lingering)
        self._interest = READ
        self._linger_until = self._loop.now + LINGER_TIME
        self._linger_on()

    def _linger_on(self) -> None:
        self._lingered = 0
        self._timer = self._loop.call_later(LINGER_LOOK, self._look_at_lingering)

    def _look_at_lingering(self) -> None:
        if self._lingered < LINGER_LEAST or self._loop.now >= self._linger_until:
            self._end(self._reason)
        else:
            self._linger_on()

    def _connection_lost(self, error: OSError) -> None:
        """The peer is gone, as an event or a system call has told."""
        if self._state != CLOSED:
            self.eof = self.reset = True
            self._error = error
            self._end("reset")

    def _abandon(self) -> None:
        self._in, self._pos, self._out = b"", 0, None
        Descriptor._abandon(self)

    def _on_ended(self) -> None:
        self.congested = False
        self._in, self._pos, self._out = b"", 0, None
        if self._relay_in is not None or self._relay_out is not None:
            self._loop.at_end_of_turn(self._end_relays)

    def _end_relays(self) -> None:
        if self._relay_out is not None:
            self._relay_out.finish()
        if self._relay_in is not None:
            self._relay_in.source_ended()

    def _tell_closed(self) -> None:
        error, self._error = self._error, None  # its traceback refers to this stream: no cycle is to stay
        if self._on_close is not None:
            self._guarded("on_close", self._on_close, self, error)

    # --- what a relay does with it (see RelayEnd)

    def _put_off(self, callback: Callable[[], object]) -> None:
        self._loop.at_end_of_turn(callback)

    def _read_some(self, size: int) -> bytes:
        return self._read(self._fd, size)

    def _write_some(self, data: memoryview) -> int:
        return self._write(self._fd, data)

    def _keep(self, data: BytesLike) -> None:
        Stream._buffer_write(self, data)  # one piece is kept at a time: no limit of unsent bytes is for that

    def _count_in(self, size: int) -> None:
        self.bytes_in += size
        self._last_active = self._loop.now

    def _count_out(self, size: int) -> None:
        self.bytes_out += size
        self._last_active = self._loop.now

    def _attach_relay_in(self, relay: Relay) -> None:
        self._relay_in = relay
        self._relays_changed()

    def _attach_relay_out(self, relay: Mover) -> None:
        self._relay_out = relay
        self._relays_changed()

    def _detach_relay(self, relay: Mover) -> None:
        if self._relay_in is relay:
            self._relay_in = None
        if self._relay_out is relay:
            self._relay_out = None
        self._last_active = self._loop.now
        self._relays_changed()

    def _relays_changed(self) -> None:
        """Dispatch events as the relays that there are now need it."""
        if self._state == OPEN or (self._state == CLOSING and not self._opening):
            if self._interest >= 0:
                self._loop.set_callback(self._fd, self._callback())
            self._update()

    def _relay_in_finished(self) -> None:
        """What is left in the buffer, or the end of stream, is for ``on_readable`` again."""
        self._call_for_rest()
        if not self._call_due:
            self._close_if_done()

    def _relay_out_finished(self) -> None:
        """What was finished or closed meanwhile has waited for the relay."""
        if self._out is None and self._relay_out is None:
            self._flushed()


@mypyc_attr(allow_interpreted_subclasses=True)
class Pipe(Stream):
    """This side of a ``PIPE``, or of another file that is no socket.

    A pipe from a program closes by itself at end of stream; one to a program that has closed its end closes with an
    error (EPIPE), which concerns nobody else.
    """

    __slots__ = ()

    def _shutdown_writing(self) -> None:
        # It has one direction: to finish sending is to close it.
        self.close()

    def _is_socket(self) -> bool:
        return False

    def _reset_at_close(self) -> None:
        """A pipe has no reset."""
