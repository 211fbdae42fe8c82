"""What a stream has received and nobody has taken yet, and the frames in it.

Theory. The buffer is a ``bytes`` as it came from the kernel. What is added to more than ``SMALL`` bytes would be copied
with each event, so from there on it is a bytearray, which grows. That has a byte too much at its beginning: its
``_pos`` is never 0, which is how ``recv`` tells without looking at the type.

The engine stops reading when the buffer is full. A plugin that waits for a frame longer than that makes room for it.
"""

from __future__ import annotations

from typing import Final

from ..core.native import mypyc_attr
from ..errors import FrameTooLong, LineTooLong
from .descriptor import OPEN, Descriptor

RECV_SIZE: Final = 65536  # bytes asked of the kernel at a time, and what recv() takes by itself
READ_AHEAD: Final = 262144  # bytes in the buffer at which the engine stops reading
SMALL: Final = 4096  # bytes in the buffer up to which it is copied when more come

BytesLike = bytes | bytearray | memoryview


@mypyc_attr(allow_interpreted_subclasses=True)
class InputBuffer(Descriptor):
    """The part of a ``Stream`` that a plugin takes bytes from. Stream fills it.

    For the engine: ``_append`` and ``_take_input``.
    """

    __slots__ = ("_in", "_pos", "_read_ahead", "_sought", "bytes_in", "eof")

    # Stream sets them, as it does those of Descriptor.
    _in: bytes | bytearray
    _pos: int  # where in _in the next byte is; 0 where _in is empty, and never 0 in a bytearray
    # A separator, the number of the buffer's first byte in the stream, and where in the buffer to look on for it.
    _sought: tuple[bytes, int, int] | None
    _read_ahead: int  # bytes in the buffer at which the engine stops reading
    bytes_in: int
    eof: bool

    def recv(self, limit: int = RECV_SIZE) -> bytes:
        """What is there now, at most ``limit`` bytes; ``b""`` when nothing is. End of stream is ``eof``."""
        data = self._in
        if self._pos or len(data) > limit:
            data = self._recv_part(limit)
        else:
            self._in = b""
        if not self._reading and self._state == OPEN:
            self._update()
        return data  # type: ignore[return-value]  # of a bytearray it is a part

    def _recv_part(self, limit: int) -> bytes:
        data, pos = self._in, self._pos
        end = pos + max(limit, 0)
        if end >= len(data):
            self._in, self._pos = b"", 0
        else:
            self._pos = end
        return data[pos:end] if type(data) is bytes else bytes(memoryview(data)[pos:end])

    def recv_line(self, limit: int = RECV_SIZE) -> bytes | None:
        """One line with its end (``\\n``), or None while there is none. At end of stream what is left is the last.

        :param limit: the most bytes that a line may have, its end included.
        :raises LineTooLong: there are ``limit`` bytes and no end of line; they stay in the buffer.
        """
        if self._sought is None and self._read_ahead == READ_AHEAD:  # as nearly always
            pos = self._pos
            newline = self._in.find(b"\n", pos, pos + limit)
            if newline >= 0:
                return self.recv(newline + 1 - pos)
        size = self._find(b"\n", limit)
        if size:
            return self._recv_frame(size)
        there = len(self._in) - self._pos
        if there >= limit:
            raise LineTooLong(limit)
        if self.eof and there:
            return self.recv(limit)
        self._await_frame(limit)
        return None

    def recv_exactly(self, n: int) -> bytes | None:
        """``n`` bytes, or None while there are fewer. Where the peer finishes before, they stay: see ``eof``, ``recv``.

        The engine makes room for them, however many: check a length that the peer has sent before asking for it.

        :raises ValueError: ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"a frame of {n} bytes")
        if len(self._in) - self._pos >= n:
            return self._recv_frame(n)
        self._await_frame(n)
        return None

    def recv_until(self, separator: bytes, limit: int = RECV_SIZE) -> bytes | None:
        """All bytes up to the first ``separator``, and that too, or None while it has not come.

        Where the peer finishes without it, what has come stays: see ``eof`` and ``recv``. No byte is searched twice,
        however they arrive.

        :param limit: the most bytes that this may be, the separator included.
        :raises FrameTooLong: there are ``limit`` bytes and no separator in them; they stay in the buffer.
        :raises ValueError: the separator is empty, or longer than the limit.
        """
        if not 0 < len(separator) <= limit:
            raise ValueError(f"a separator of {len(separator)} bytes, and a limit of {limit}")
        size = self._find(separator, limit)
        if size:
            return self._recv_frame(size)
        if len(self._in) - self._pos >= limit:
            raise FrameTooLong(limit)
        self._await_frame(limit)
        return None

    def _find(self, separator: bytes, limit: int) -> int:
        """How many bytes there are up to the end of the first separator; 0 if it is not among the first ``limit``."""
        data, pos = self._in, self._pos
        start, sought = pos, self._sought
        if sought is not None:
            self._sought = None
            if sought[0] == separator and sought[1] == self.bytes_in - len(data) + pos:
                start += sought[2]
        found = data.find(separator, start, pos + limit)
        if found >= 0:
            return found + len(separator) - pos
        # Where there is little, to look again is as quick as to remember.
        if (searched := min(len(data) - pos, limit) - len(separator) + 1) > SMALL:
            self._sought = separator, self.bytes_in - len(data) + pos, searched
        return 0

    def _recv_frame(self, size: int) -> bytes:
        if self._read_ahead != READ_AHEAD:
            self._read_ahead = READ_AHEAD
        return self.recv(size)

    def _await_frame(self, size: int) -> None:
        """Read until so many bytes are in the buffer, although it may be full before."""
        if size > self._read_ahead:
            self._read_ahead = size
            self._update()

    def peek(self) -> bytes:
        """All that is there now, without taking it. More than 256 KiB are not kept: then nothing more is read."""
        return bytes(self._in[self._pos :])

    def unread(self, data: BytesLike) -> None:
        """Give bytes back: they are the next that ``recv`` returns."""
        if self._state == OPEN:
            self._in = bytes(data) + self._in[self._pos :]
            self._pos = 0
            self._sought = None

    # --- for the engine

    def _append(self, data: bytes) -> None:
        """Add to what is in the buffer."""
        buffer, pos = self._in, self._pos
        if isinstance(buffer, bytearray):
            if pos > len(buffer) // 2:
                del buffer[1:pos]  # what has been taken
                self._pos = 1
            buffer += data
        elif len(buffer) - pos <= SMALL:
            self._in = buffer[pos:] + data
            self._pos = 0
        else:
            grows = bytearray(1)
            grows += memoryview(buffer)[pos:]
            grows += data
            self._in = grows
            self._pos = 1

    def _take_input(self, limit: int | None) -> bytes:
        data = self._recv_part(len(self._in) if limit is None else limit)
        self._in, self._pos = self.peek(), 0
        return data
