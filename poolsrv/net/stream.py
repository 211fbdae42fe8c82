"""Bytes in and out of one descriptor, with backpressure: the base of Connection, and the other side of a plugin.

Its floors, each in a file of its own: descriptor.py (the states, being watched, the end), input.py (what has
arrived), closing.py (what a peer sends that nobody wants any more), and here: what happens at an event, and writing.

Writing. ``send`` gives the kernel what it takes at once, and keeps the rest in one bytearray until the descriptor is
writable. Above ``HIGH_WATER`` the stream is congested until it falls below ``LOW_WATER``.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from ..core.event_loop import ERROR, HANGUP, PEER_FINISHED, READ, WRITE, EventLoop
from .closing import Closing
from .descriptor import CLOSED, CLOSING, CONNECTING, OPEN, Owner
from .input import RECV_SIZE
from .relay import Relay

HIGH_WATER: Final = 262144  # bytes kept above which a stream is congested
LOW_WATER: Final = 65536  # bytes kept below which it no longer is
FLUSH_SIZE: Final = 262144  # bytes offered to the kernel per event
MAX_EXTRA_READS: Final = 3  # per event, each after a read that has filled its buffer: there is probably more

READABLE: Final = READ | ERROR | HANGUP  # each of them makes recv(2) return at once

BytesLike = bytes | bytearray | memoryview


class Stream(Closing):
    """A stream of bytes to and from somewhere: a pipe to a program, an outgoing connection.

    What a plugin may use is the members without an underscore. Callbacks are called as ``on_readable(stream)``,
    ``on_writable(stream)`` and, once, ``on_close(stream, error)``, where ``error`` is None or the exception (mostly
    an OSError) that ended the stream.

    :ivar reset: the peer has reset the connection, or is gone; then ``eof`` is True too.
    :ivar congested: more than 256 KiB wait to be written; it ends when less than 64 KiB do.
    :ivar bytes_out: bytes handed to the kernel.
    """

    __slots__ = (
        "_eof_sent",
        "_last_active",
        "_on_close",
        "_on_writable",
        "_out",
        "_relay_out",
        "_sends_eof",
        "bytes_out",
        "congested",
        "reset",
    )

    def __init__(self, loop: EventLoop, fd: int, owner: Owner | None = None) -> None:
        super().__init__(loop, fd, owner)
        self._out: bytearray | None = None
        self._on_writable: Callable[[Any], object] | None = None
        self._on_close: Callable[[Any, BaseException | None], object] | None = None
        self._sends_eof = False  # send_eof has been called
        self._eof_sent = False  # and the kernel has been told
        self._relay_out: Relay | None = None  # brings what is written here
        self._last_active = loop.now
        self.bytes_out = 0
        self.congested = False
        self.reset = False

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
            raise ValueError("something is being relayed to the target")
        Relay(self, target, limit, done).start()

    @property
    def relay_waits(self) -> bool:
        """True while a relay from here waits for its target to take more: who is slow is not this peer."""
        return self._relay_in is not None and not self._relay_in.wants_read

    # --- the end

    def close(self, reason: str = "") -> None:
        """Close, after the bytes kept are written. Nothing more is received."""
        if self._state == OPEN:
            self._state = CLOSING
            self._reason = reason
            self._in, self._pos = b"", 0
            for relay in (self._relay_in, self._relay_out):
                if relay is not None:
                    self._loop.at_end_of_turn(relay.pump)  # it ends once nothing is in transit
            if self._out is None and self._relay_out is None:
                self._loop.at_end_of_turn(self._finish_close)
                if self.eof:
                    return  # nothing will come, and it is watched no longer than this turn
            elif self._interest >= 0:
                self._loop.set_callback(self._fd, self._callback())
            self._update()
        elif self._state == CONNECTING:
            self.abort(reason)

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
                        self._in = self._in[self._pos :] + data
                        self._pos = 0
                    else:
                        self._in = data
                    try:
                        on_readable(self)  # type: ignore[misc]  # no READ interest without it
                    except BaseException as error:  # noqa: BLE001 - as in _guarded, without its call
                        self._fault("on_readable", error)
                    if self._in and len(self._in) - self._pos >= self._read_ahead:
                        self._update()
                    if size == RECV_SIZE and again and self._reading and self._relay_in is None:
                        Stream._on_event(self, READ, again - 1)
                else:
                    self._at_eof()
            if mask == READ:
                return
        if mask & WRITE and self._interest & WRITE:
            self._flush()
        elif mask & (ERROR | HANGUP | PEER_FINISHED) and not self._reading:
            self._on_hangup(mask)

    def _on_event_relayed(self, mask: int) -> None:
        """In the place of ``_on_event`` while a relay has this stream on either side."""
        if mask & READABLE and self._reading and self._relay_in is not None:
            self._relay_in.pump()
            mask &= ~READABLE
        if mask & WRITE and self._out is None and self._relay_out is not None:
            self._relay_out.pump()
            return
        if mask:
            self._on_event(mask)

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
        """Nothing is kept any more: what waited for that."""
        if self._relay_out is not None:
            self._relay_out.pump()
        elif self._state == CLOSING:
            self._finish_close()
        elif self._state == OPEN:
            if self._sends_eof:
                self._shutdown_writing()
            self._close_if_done()

    # --- helpers

    def _buffer_write(self, data: BytesLike) -> None:
        if self._out is None:
            self._out = bytearray(data)
        else:
            self._out += data
        if not self.congested and len(self._out) > HIGH_WATER:
            self.congested = True
        self._update()

    def _wanted(self) -> int:
        wanted = READ if self._wants_read() and (not self.congested or self._relay_in is not None) else 0
        if self._state == CLOSING and self._relay_out is None and self._throws_away():
            wanted = READ
        if self._out is not None or (self._relay_out is not None and self._relay_out.wants_write):
            wanted |= WRITE
        return wanted

    def _callback(self) -> Callable[[int], object]:
        if self._relay_in is not None or self._relay_out is not None:
            return self._on_event_relayed
        return self._on_event_closing if self._state == CLOSING else self._on_event

    # --- what a relay does with it (see RelayEnd)

    def _fileno(self) -> int:
        return self._fd

    def _put_off(self, callback: Callable[[], object]) -> None:
        self._loop.at_end_of_turn(callback)

    def _take_input(self, limit: int | None) -> bytes:
        data = self._recv_part(len(self._in) if limit is None else limit)
        self._in, self._pos = self.peek(), 0
        return data

    def _read_some(self, size: int) -> bytes:
        return self._read(self._fd, size)

    def _write_some(self, data: memoryview) -> int:
        return self._write(self._fd, data)

    def _count_in(self, size: int) -> None:
        self.bytes_in += size
        self._last_active = self._loop.now

    def _count_out(self, size: int) -> None:
        self.bytes_out += size
        self._last_active = self._loop.now

    def _attach_relay_in(self, relay: Relay) -> None:
        self._relay_in = relay
        self._relays_changed()

    def _attach_relay_out(self, relay: Relay) -> None:
        self._relay_out = relay
        self._relays_changed()

    def _detach_relay(self, relay: Relay) -> None:
        if self._relay_in is relay:
            self._relay_in = None
        if self._relay_out is relay:
            self._relay_out = None
        self._last_active = self._loop.now
        self._relays_changed()

    def _relays_changed(self) -> None:
        """Dispatch events as the relays that there are now need it."""
        if self._state in (OPEN, CLOSING):
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

    def _shutdown_writing(self) -> None:
        if self._eof_sent:
            return  # a second shutdown(2) fails where the peer has finished too, and would look like a reset
        self._eof_sent = True
        try:
            self._finish_sending()
        except OSError as error:
            self._connection_lost(error)

    def _finish_sending(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def _close_if_done(self) -> None:
        """After end of stream: close, once nothing is left to write and nothing holds it."""
        if self._eof_told and self._state == OPEN and self._out is None and not self._is_held():
            # As close() does, without waiting for the end of the turn: nothing is kept, nothing will come.
            self._state, self._reason = CLOSING, "eof"
            self._in, self._pos = b"", 0
            self._finish_close()

    def _is_held(self) -> bool:
        return self._relay_in is not None or self._relay_out is not None

    def _connection_lost(self, error: OSError) -> None:
        """The peer is gone, as an event or a system call has told."""
        if self._state != CLOSED:
            self.eof = self.reset = True
            self._error = error
            self._end("reset")

    def _end(self, reason: str) -> None:
        if self._state != CLOSED:
            self.congested = False
            self._in, self._pos, self._out = b"", 0, None
            super()._end(reason)

    def _release(self) -> None:
        if self._relay_out is not None:
            self._relay_out.finish()
        if self._relay_in is not None:
            self._relay_in.source_ended()
        super()._release()

    def _tell_closed(self) -> None:
        if self._on_close is not None:
            self._guarded("on_close", self._on_close, self, self._error)
