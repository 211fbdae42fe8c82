"""What has arrived on a stream: the buffer, the ways to take from it, and who is called about it.

Theory. The engine reads into the buffer, at most 64 KiB at a time, and calls ``on_readable``; what the plugin leaves
there stays. It stops asking the kernel for more (drops READ from the descriptor's interest) while the plugin has
paused, at end of stream, while too much is kept for the peer, and while the buffer is full. A level-triggered
descriptor that nobody reads would otherwise spin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..core.event_loop import EventLoop
from ..errors import LineTooLong
from .descriptor import OPEN, Descriptor, Owner

if TYPE_CHECKING:
    from .relay import Relay


RECV_SIZE: Final = 65536  # bytes asked of the kernel at a time, and what recv() takes by itself
READ_AHEAD: Final = 262144  # bytes in the buffer at which the engine stops reading


class Input(Descriptor):
    """The reading side of a stream.

    :ivar eof: the peer has finished sending, and all its bytes have been offered to ``on_readable``.
    :ivar bytes_in: bytes received from the kernel.
    """

    __slots__ = (
        "_call_due",
        "_eof_told",
        "_in",
        "_on_readable",
        "_paused",
        "_pos",
        "_read_ahead",
        "_relay_in",
        "bytes_in",
        "eof",
    )

    def __init__(self, loop: EventLoop, fd: int, owner: Owner | None) -> None:
        super().__init__(loop, fd, owner)
        self._in = b""
        self._pos = 0  # where in _in the next byte is; 0 where _in is empty
        self._read_ahead = READ_AHEAD
        self._paused = False
        self._call_due = False  # on_readable will be called at the end of the turn
        self._eof_told = False  # on_readable has been called with eof, and has returned
        self._on_readable: Callable[[Any], object] | None = None
        self._relay_in: Relay | None = None  # takes what is read here
        self.bytes_in = 0
        self.eof = False

    # --- for plugins

    def recv(self, limit: int = RECV_SIZE) -> bytes:
        """What is there now, at most ``limit`` bytes; ``b""`` when nothing is. End of stream is ``eof``."""
        data = self._in
        if self._pos or len(data) > limit:
            data = self._recv_part(limit)
        else:
            self._in = b""
        if not self._reading and self._state == OPEN:
            self._update()
        return data

    def _recv_part(self, limit: int) -> bytes:
        data, pos = self._in, self._pos
        end = pos + max(limit, 0)
        if end >= len(data):
            self._in, self._pos = b"", 0
        else:
            self._pos = end
        return data[pos:end]

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
        """All that is there now, without taking it. More than 256 KiB are not kept: then nothing more is read."""
        return self._in[self._pos :]

    def unread(self, data: bytes | bytearray | memoryview) -> None:
        """Give bytes back: they are the next that ``recv`` returns."""
        if self._state == OPEN:
            self._in = bytes(data) + self._in[self._pos :]
            self._pos = 0

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

    # --- what the engine does

    def _wants_read(self) -> bool:
        if self._state != OPEN or self.eof:
            return False
        if self._relay_in is not None:
            return self._relay_in.wants_read
        return not self._paused and self._on_readable is not None and len(self._in) - self._pos < self._read_ahead

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
            self._at_eof()  # a relay has met it; not being told, it would never be closed
        elif len(self._in) > self._pos and not self._paused:
            if self._on_readable is not None:
                self._guarded("on_readable", self._on_readable, self)
            self._close_if_done()

    def _at_eof(self) -> None:
        """Nothing more will come: say so, once."""
        self.eof = True
        if self._state != OPEN:
            return
        if self._on_readable is not None:
            self._guarded("on_readable", self._on_readable, self)
        self._eof_told = True
        self._close_if_done()
        if self._state == OPEN:
            self._update()

    def _close_if_done(self) -> None:
        """After end of stream: close, where nothing else is to be waited for."""
        raise NotImplementedError
