"""A file, or parts of it, on its way to a client.

A small file is read at once, and sent together with the header. `Response.send_file` sends everything else, one part
after another, as fast as the client takes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import msgspec

from poolsrv import Connection

from ..headers import ResponseHeader
from ..response import Response
from ..stall import StallTimeout, Watch

__all__ = ["Part", "Transfer"]

AT_ONCE: Final = 32768  # bytes that are read and sent with the header


class Part(msgspec.Struct, frozen=True):
    """Bytes of a file, and what goes before them."""

    before: bytes
    offset: int
    count: int


class Transfer:
    """One response with bytes of a file.

    :param fd: the file; it is closed at the end, however that comes.
    :param end: goes behind the last part.
    :param stalled: watches clients that take nothing.
    """

    __slots__ = ("_conn", "_end", "_fd", "_left", "_response", "_stalled", "_watch")

    def __init__(
        self, conn: Connection, response: Response, fd: int, parts: Sequence[Part], end: bytes, stalled: StallTimeout
    ) -> None:
        self._conn = conn
        self._response = response
        self._fd = fd
        self._left = list(reversed(parts))
        self._end = end
        self._stalled = stalled
        self._watch: Watch | None = None

    def start(self, header: ResponseHeader) -> None:
        """Send the header, and all that follows."""
        if (header.content_length or 0) <= AT_ONCE:
            self._send_at_once(header)
            return
        self._response.start_with(header)
        self._watch = Watch(lambda: self._conn.bytes_out, self._stands_still)
        self._stalled.add(self._watch)
        self._go_on()

    def _send_at_once(self, header: ResponseHeader) -> None:
        try:
            pieces = []
            while self._left:
                part = self._left.pop()
                pieces += [part.before, os.pread(self._fd, part.count, part.offset)]
        except OSError as error:
            self._close()
            self._conn.log.error("can't read a file: %s", error.strerror)
            self._response.error(500)
            return
        self._close()
        self._response.start_with(header, b"".join([*pieces, self._end]), whole=True)
        self._response.end()

    def _go_on(self) -> None:
        response = self._response
        if self._left:
            part = self._left.pop()
            if part.before:
                response.send(part.before)
            expected = part.count
            if response.send_file(self._fd, part.offset, expected, lambda sent: self._sent(sent, expected)):
                return
        elif self._end:
            response.send(self._end)
        self._finish(True)

    def _sent(self, sent: int, expected: int) -> None:
        if sent == expected:
            self._go_on()
            return
        if not (self._conn.reset or self._response.ended):
            self._conn.log.info("a file was cut short after %d of %d bytes", sent, expected)
        self._finish(False)

    def _finish(self, complete: bool) -> None:
        if self._watch is not None:
            self._stalled.remove(self._watch)
            self._watch = None  # no reference cycle
        self._close()
        self._response.end(complete)

    def _stands_still(self) -> None:
        self._conn.log.info("the client has taken nothing of a file within send_timeout")
        self._response.abort("send_timeout")

    def _close(self) -> None:
        os.close(self._fd)
