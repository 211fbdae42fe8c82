"""What a request head is once it has been read, what limits it has, and the error of one that can't be served.

The parser is in `head`.
"""

from __future__ import annotations

import msgspec

__all__ = ["CONNECTION_FIELDS", "SINGLE_FIELDS", "RequestError", "RequestHead", "RequestLimits"]

# Fields that have one value, and of which no sender may send two (RFC 9110 section 5.3, RFC 6454 section 7.3, RFC 4918
# section 10): a recipient that takes the first and one that takes the last would read different requests. Expect is a
# list by its grammar, but there is only one member that it can have.
SINGLE_FIELDS = frozenset(
    b"host content-length content-type content-location content-range content-disposition"
    b" authorization proxy-authorization date expect from if-modified-since if-range if-unmodified-since last-modified"
    b" max-forwards origin range referer user-agent depth destination lock-token overwrite".split()
)

# Fields about the connection (RFC 9110 section 7.6.1) and the framing: the server sends its own, and passes none on.
CONNECTION_FIELDS = frozenset(
    b"connection content-length keep-alive proxy-connection te trailer transfer-encoding upgrade".split()
)


class RequestError(Exception):
    """A request that can't be served as HTTP: answer with `status`, then close the connection.

    :ivar status: the HTTP status code.
    :ivar reason: one line for the log, never for the client; it may hold text of the request, escaped.
    :ivar request_line: what was sent as request line, as far as known, for the access log.
    """

    def __init__(self, status: int, reason: str, request_line: str = "") -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.request_line = request_line

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of request heads.

    :ivar max_head: bytes of request line and header together, line ends included (431 beyond it).
    :ivar max_target: bytes of the request target (414); RFC 9112 section 3 asks for at least 8000.
    :ivar max_fields: header lines (431).
    :ivar single: names, in lower case, of the fields that may come only once (400).
    """

    max_head: int = 32768
    max_target: int = 8192
    max_fields: int = 500
    single: frozenset[bytes] = SINGLE_FIELDS


class RequestHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request head that has passed every check.

    :ivar line: the request line as sent.
    :ivar method: as sent, case kept.
    :ivar path: the target's path, still percent-encoded; "*" for `OPTIONS *`.
    :ivar query: what follows "?", not decoded; "" also where there is no "?".
    :ivar target: path and query as sent, without scheme and host (REQUEST_URI).
    :ivar version: (1, 0) or (1, 1): the one to answer by.
    :ivar headers: name in lower case to value without the whitespace around it; repeated ones are joined (RFC 9110
        section 5.3).
    :ivar host: host and port that the request is for, b"" where unknown.
    :ivar content_length: bytes, None where none was sent.
    :ivar chunked: the body comes in chunks.
    :ivar keep_alive: the client would like to use the connection again (RFC 9112 section 9.3).
    :ivar expect_continue: it waits for 100 before it sends the body (RFC 9110 section 10.1.1).
    """

    line: str
    method: str
    path: str
    query: str
    target: str
    version: tuple[int, int]
    headers: dict[bytes, bytes]
    host: bytes
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expect_continue: bool

    @property
    def has_body(self) -> bool:
        """Whether a body was announced, be it an empty one (RFC 9112 section 6)."""
        return self.chunked or self.content_length is not None
