"""A request's body: where it ends, and for chunked bodies, what is in it.

There are two decoders with one shape: `feed(data)` takes bytes and returns those of the body, decoded; `done` says that
the body is whole; `surplus` then holds the bytes behind it, which belong to the next request.

A body with a Content-Length needs no decoding. Code that moves bytes without looking at them (from socket to pipe) may
move exactly `remaining` bytes, and account for them with `advance`.

Chunked bodies (RFC 9112 section 7.1) are read by a decoder of our own. llhttp's does not tell where the body ended
in what it was given, which pipelining needs; nor does it bound chunk extensions, a classic way to make a server read
without end. Line ends are CRLF and nothing else: parsers that took LF alone, or any two bytes after a chunk's data,
have been used for smuggling. Extensions are checked and ignored, trailer fields are checked and dropped
(RFC 9110 section 6.5.1 allows that). The answers don't depend on how the bytes were split.
"""

from __future__ import annotations

import re

import msgspec

from .request_head import RequestError, RequestHead

__all__ = ["BodyLimits", "ChunkedDecoder", "LengthDecoder", "body_decoder"]

SIZE_LINE = len("123456789ABCDEF\r\n")  # bytes that a chunk's first line may have beside its extensions

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = rb"[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
# RFC 9112 section 7.1: hexadecimal digits alone, no sign, no 0x. 15 of them stay below 2^63.
_match_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,15})((?:" + _EXTENSION + rb")*)\r\n").fullmatch
_match_trailer_line = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*\r\n").fullmatch


class BodyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of request bodies.

    :ivar max_size: bytes of a body, decoded (413).
    :ivar max_extensions: bytes of all chunk extensions of one body together (400).
    :ivar max_trailer: bytes of the trailer section (431).
    :ivar max_fields: trailer fields (431).
    """

    max_size: int = 1 << 30
    max_extensions: int = 16384
    max_trailer: int = 32768
    max_fields: int = 500


class LengthDecoder:
    """A body of `length` bytes (RFC 9112 section 6.3, rule 6)."""

    __slots__ = ("remaining", "surplus")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.surplus = b""

    @property
    def done(self) -> bool:
        """Whether every byte of the body has gone through."""
        return not self.remaining

    def advance(self, count: int) -> None:
        """Account for `count` bytes that were moved past this decoder."""
        self.remaining -= count

    def feed(self, data: bytes, lines: int | None = None) -> bytes:
        """The part of `data` that is of the body. Never raises.

        :param lines: as for a `ChunkedDecoder`; there are none here.
        """
        if len(data) > self.remaining:
            self.surplus = data[self.remaining :]
            data = data[: self.remaining]
        self.remaining -= len(data)
        return data


class ChunkedDecoder:
    """A body in chunks (RFC 9112 section 7.1).

    A `RequestError` is final: 400 for what is malformed, 413 above the largest size (as soon as a chunk's size says
    so), 431 for too large a trailer section.

    :ivar received: the decoded bytes that the chunks' sizes have announced so far.
    """

    __slots__ = (
        "_at",
        "_extensions",
        "_fields",
        "_left",
        "_limits",
        "_line",
        "_trailer",
        "done",
        "received",
        "surplus",
    )

    # Where the decoder is: in a size line, in data, in the CRLF behind the data, in the trailer section.
    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._at = self._SIZE
        self._left = 0  # of this chunk's data, bytes
        self._line = b""  # an incomplete line
        self._extensions = 0
        self._trailer = 0
        self._fields = 0
        self.received = 0
        self.done = False
        self.surplus = b""

    def feed(self, data: bytes, lines: int | None = None) -> bytes:
        """Take bytes, return what they hold of the body. Raises RequestError.

        :param lines: the most lines to go through, two to a chunk; what is left then is in `surplus`, to be fed again.
        """
        parts: list[bytes] = []
        position = 0
        self.surplus = b""
        while not self.done:
            if lines is not None:
                if not lines:
                    self.surplus = data[position:]
                    break
                lines -= 1
            if self._at == self._DATA:
                part = data[position : position + self._left]
                parts.append(part)
                position += len(part)
                self._left -= len(part)
                if self._left:
                    break
                self._at = self._DATA_END
            limit = 2 if self._at == self._DATA_END else self._longest_line()
            end = data.find(b"\n", position, position + limit - len(self._line)) + 1
            line = self._line + data[position : end or len(data)]
            if not end:
                if len(line) >= limit or (self._at == self._DATA_END and line not in (b"", b"\r")):
                    raise self._line_without_end()
                self._line = line
                break
            self._line = b""
            position = end
            self._take_line(line)
        if self.done:
            self.surplus = data[position:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _longest_line(self) -> int:
        limits = self._limits
        if self._at == self._SIZE:
            return SIZE_LINE + limits.max_extensions - self._extensions
        return limits.max_trailer - self._trailer + len("\r\n")

    def _line_without_end(self) -> RequestError:
        if self._at == self._TRAILER:
            return self._trailer_too_large()
        if self._at == self._SIZE:
            return self._too_many_extensions()
        return RequestError(400, "a chunk is longer than its size")

    def _too_many_extensions(self) -> RequestError:
        return RequestError(400, f"chunk extensions over max_chunk_extensions ({self._limits.max_extensions} bytes)")

    def _trailer_too_large(self) -> RequestError:
        return RequestError(431, f"the trailer section is over max_header_size ({self._limits.max_trailer} bytes)")

    def _take_line(self, line: bytes) -> None:
        limits = self._limits
        if self._at == self._DATA_END:
            if line != b"\r\n":
                raise RequestError(400, "a chunk is longer than its size")
            self._at = self._SIZE
        elif self._at == self._SIZE:
            matched = _match_chunk_line(line)
            if matched is None:
                raise RequestError(400, f"chunk size {line[:60]!r}")
            self._extensions += len(matched[2])
            if self._extensions > limits.max_extensions:
                raise self._too_many_extensions()
            self._left = int(matched[1], 16)
            self.received += self._left
            if self.received > limits.max_size:
                raise _too_large(limits)
            self._at = self._DATA if self._left else self._TRAILER
        elif line == b"\r\n":
            self.done = True
        else:
            self._trailer += len(line)
            self._fields += 1
            if self._trailer > limits.max_trailer:
                raise self._trailer_too_large()
            if self._fields > limits.max_fields:
                raise RequestError(431, f"more trailer fields than max_header_fields ({limits.max_fields})")
            if not _match_trailer_line(line):
                raise RequestError(400, f"trailer field {line[:60]!r}")


def body_decoder(request: RequestHead, limits: BodyLimits) -> LengthDecoder | ChunkedDecoder:
    """The decoder for this request's body; one that is done at once where it has none.

    :raises RequestError: 413 where the Content-Length is above the limit (RFC 9110 section 15.5.14). 411 for a POST or
        PUT of HTTP/1.0 without Content-Length (RFC 1945 section 7.2.2): such a client may well send a body, whose end
        can't be known. In HTTP/1.1 it says by this that there is none.
    """
    if request.chunked:
        return ChunkedDecoder(limits)
    if request.content_length is None and request.version == (1, 0) and request.method in ("POST", "PUT"):
        raise RequestError(411, "no Content-Length", request.line)
    length = request.content_length or 0
    if length > limits.max_size:
        raise _too_large(limits, request.line)
    return LengthDecoder(length)


def _too_large(limits: BodyLimits, line: str = "") -> RequestError:
    return RequestError(413, f"the body is over max_body_size ({limits.max_size} bytes)", line)
