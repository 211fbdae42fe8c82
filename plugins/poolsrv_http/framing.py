"""A response as bytes: its head, and the framing that tells the client where its body ends.

There are four framings (RFC 9112 section 6.3); a response has the first one that fits:

| framing | when | the client knows the end by |
| --- | --- | --- |
| `NONE` | HEAD, 204, 205, 304 | there is no body |
| `LENGTH` | the header has a length | counting |
| `CHUNKED` | HTTP/1.1 | the last chunk |
| `CLOSE` | HTTP/1.0 | the connection's end |

What goes beyond the length is cut off, because the client would take it for the next response. A body that is cut short
must not look whole: then there is no last chunk, and the connection is closed.

A body's bytes either go through `encode`, or are moved past this object by the kernel and accounted for: with
`advance` (LENGTH, CLOSE), or, in chunks, by sending what `open_chunk` returns and then exactly so many bytes.
"""

from __future__ import annotations

import time
from enum import Enum
from functools import lru_cache
from http import HTTPStatus

from .headers import ResponseHeader

__all__ = ["CONTINUE", "REASONS", "FramedResponse", "Framing", "http_date"]

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
REASONS |= {413: b"Content Too Large", 414: b"URI Too Long", 422: b"Unprocessable Content"}  # RFC 9110's words
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Framing(Enum):
    """How the client knows the end of a body. See the table above."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class FramedResponse:
    """One response as bytes.

    :param header: known to be right.
    :param method: of the request.
    :param version: of the request.
    :param keep_alive: whether client and server would like to use the connection again.
    :param date: for the Date field (`http_date`); a Date in the header wins (RFC 9110 section 6.6.1).
    :param server: for the Server field, b"" for none; a Server in the header wins.
    :ivar head: status line and header, with the empty line: to be sent first.
    :ivar framing: how the body's end is told.
    :ivar remaining: with LENGTH, the bytes still to come.
    :ivar keep_alive: whether the connection can serve another request; final once `finish` was called.
    :ivar intact: False once it is known that the client did not get the whole body.
    """

    __slots__ = ("_chunk_open", "framing", "head", "intact", "keep_alive", "remaining")

    def __init__(
        self,
        header: ResponseHeader,
        *,
        method: str,
        version: tuple[int, int],
        keep_alive: bool,
        date: bytes,
        server: bytes = b"poolsrv",
    ) -> None:
        status = header.status
        length = header.content_length
        self.remaining = 0
        self.intact = True
        self._chunk_open = False
        if method == "HEAD" or status == 304:
            self.framing = Framing.NONE
        elif status in (204, 205):
            # RFC 9110 section 8.6: no Content-Length with 204; section 15.3.6: 205 says that it has no content.
            self.framing = Framing.NONE
            length = None if status == 204 else 0
        elif length is not None:
            self.framing = Framing.LENGTH
            self.remaining = length
        elif version >= (1, 1):
            self.framing = Framing.CHUNKED
        else:
            self.framing = Framing.CLOSE
            keep_alive = False
        self.keep_alive = keep_alive
        lines = _lines_of(header, date, server)
        if length is not None:
            lines += b"Content-Length: %d\r\n" % length
        elif self.framing is Framing.CHUNKED:
            lines += b"Transfer-Encoding: chunked\r\n"
        if not keep_alive:
            self.head = lines + b"Connection: close\r\n\r\n"
        elif version < (1, 1):
            self.head = lines + b"Connection: keep-alive\r\n\r\n"
        else:
            self.head = lines + b"\r\n"

    @property
    def wants_body(self) -> bool:
        """Whether more of the body would be sent; False where it would be thrown away."""
        return self.framing is not Framing.NONE and (self.framing is not Framing.LENGTH or self.remaining > 0)

    def encode(self, data: bytes) -> bytes:
        """Frame bytes of the body; b"" for what is cut off."""
        if self.framing is Framing.CHUNKED:
            if not data:  # an empty chunk would be the last one
                return b""
            return b"%b%x\r\n%b\r\n" % (self._close_chunk(), len(data), data)
        if self.framing is Framing.LENGTH:
            data = data[: self.remaining]
            self.remaining -= len(data)
            return data
        return data if self.framing is Framing.CLOSE else b""

    def advance(self, count: int) -> None:
        """Account for `count` bytes that were moved past this object; with LENGTH at most `remaining`."""
        if self.framing is Framing.LENGTH:
            self.remaining -= count

    def open_chunk(self, size: int) -> bytes:
        """Begin a chunk of `size` bytes (at least 1) that are moved past this object. Only with CHUNKED."""
        head = b"%b%x\r\n" % (self._close_chunk(), size)
        self._chunk_open = True
        return head

    def finish(self, complete: bool = True) -> bytes:
        """End the body; then `keep_alive` and `intact` say whether the connection can go on.

        :param complete: False where the body was cut short.
        """
        if self.framing is Framing.CHUNKED:
            if complete:
                return self._close_chunk() + b"0\r\n\r\n"
            self.intact = self.keep_alive = False
        elif self.framing is Framing.LENGTH:
            if self.remaining:
                self.intact = self.keep_alive = False
        elif self.framing is Framing.CLOSE:
            self.intact = complete
        return b""

    def _close_chunk(self) -> bytes:
        if self._chunk_open:
            self._chunk_open = False
            return b"\r\n"
        return b""


@lru_cache(maxsize=32)  # within a second, many responses of a busy server begin alike
def _lines_of(header: ResponseHeader, date: bytes, server: bytes) -> bytes:
    """The status line and the fields that do not depend on the framing."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (header.status, header.reason or REASONS.get(header.status, b""))]
    has_date = has_server = False
    for name, value in header.fields:
        lines.append(b"%b: %b\r\n" % (name, value))
        if len(name) == 4:
            has_date = has_date or name.lower() == b"date"
        elif len(name) == 6:
            has_server = has_server or name.lower() == b"server"
    if not has_date:
        lines.append(b"Date: %b\r\n" % date)
    if server and not has_server:
        lines.append(b"Server: %b\r\n" % server)
    return b"".join(lines)


def http_date(now: float | None = None) -> bytes:
    """A time as RFC 9110 section 5.6.7 wants it (IMF-fixdate).

    :param now: seconds since the epoch; without it, now.
    """
    return _this_second(int(time.time())) if now is None else _of_a_file(int(now))


def _date_of(second: int) -> bytes:
    t = time.gmtime(second)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04}"
        f" {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
    ).encode()


# No second comes twice, so that more than one would only fill memory. Files have theirs for long.
_this_second = lru_cache(maxsize=1)(_date_of)
_of_a_file = lru_cache(maxsize=1024)(_date_of)
