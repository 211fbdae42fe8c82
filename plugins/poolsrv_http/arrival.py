"""A request's body as it arrives: how much of it has come, how much is still to come, and where it ends."""

from __future__ import annotations

import time

from poolsrv import Connection

from .decoders import ChunkedDecoder, LengthDecoder
from .framing import CONTINUE
from .request_head import RequestHead

__all__ = ["BodyArrival"]

# Of a body with a Content-Length, what has to be here before it is ready.
LEAST_FIRST = 16384  # bytes, where spool_memory is less
READ_AHEAD = 262144  # bytes, where it is more: the engine keeps no more of what has come
FAST_FIRST = 65536  # bytes, of a client that has sent them
FAST_TIME = 8.0  # within so many seconds


class BodyArrival:
    """The part of a `RequestBody` that knows where the body is in its connection's input.

    :ivar length: bytes, decoded; None where the request has no body. Of a chunked body only right once all has come.
    """

    __slots__ = ("_began", "_conn", "_continued", "_decoder", "_end", "length")

    def __init__(self, conn: Connection, head: RequestHead, decoder: LengthDecoder | ChunkedDecoder) -> None:
        self._conn = conn
        self._decoder = decoder
        self.length = head.content_length
        # Where in the connection's input it ends, counted as bytes_in is.
        self._end = self._position() + (self.length or 0) if self.length or head.chunked else 0
        self._began = time.monotonic()
        self._continued = not head.expect_continue

    def ask(self) -> None:
        """Say to a client that waits for it that the body is wanted (RFC 9110 section 10.1.1)."""
        if not self._continued:
            self._continued = True
            self._conn.send(CONTINUE)

    @property
    def is_chunked(self) -> bool:
        """Whether its length is known only at its end."""
        return isinstance(self._decoder, ChunkedDecoder)

    @property
    def is_here(self) -> bool:
        """Whether all of it has come."""
        if isinstance(self._decoder, ChunkedDecoder):
            return self._decoder.done
        return self._conn.bytes_in >= self._end

    @property
    def may_go_on(self) -> bool:
        """Whether the place of the next request is known: all is here, and the client does not wait to be asked for it.

        A client that waits for 100 and gets another answer may send the body or not (RFC 9110 section 10.1.1).
        """
        return self.is_here and self._continued

    @property
    def unread(self) -> int | None:
        """Bytes of it that have not been taken from the connection; None while chunks are still to come."""
        if isinstance(self._decoder, ChunkedDecoder) and not self._decoder.done:
            return None
        return max(self._end - self._position(), 0) if self._end else 0

    def _position(self) -> int:
        """How much of the connection's input has been taken."""
        return self._conn.bytes_in - len(self._conn.peek())

    def _has_ended(self, length: int) -> None:
        """All chunks have been taken: the body has ended here.

        :param length: bytes, decoded.
        """
        self._end = self._position()
        self.length = length

    def _has_first_part(self, least: int, wanted: int = 0) -> bool:
        """Whether the first part of a body with a Content-Length is here, in the connection's buffer.

        :param least: bytes; the client may take its time for so many.
        :param wanted: bytes that the reader wants to see beforehand, at most `READ_AHEAD`.
        """
        length = self.length or 0
        here = self._conn.bytes_in - (self._end - length)
        if here >= max(FAST_FIRST, wanted) and time.monotonic() - self._began < FAST_TIME:
            return True
        return here >= min(length, max(least, LEAST_FIRST, wanted), READ_AHEAD)

    def _receive(self) -> bytes:
        decoder = self._decoder
        if isinstance(decoder, LengthDecoder):
            return self._conn.recv(min(decoder.remaining, 65536))
        return self._conn.recv()
