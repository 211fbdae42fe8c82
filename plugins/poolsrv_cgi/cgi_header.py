"""The header that a CGI program prints before its document (RFC 3875 section 6).

The four shapes of a response (section 6.2) come out as three, since the last two differ only in what follows:

| shape | known by | here |
| --- | --- | --- |
| document | Content-Type or Status, no Location | status 200 or what Status says |
| local redirect | Location alone, a path and query | `local` is True: the server makes a new request of `location` |
| client redirect, with or without document | any other Location | status 302 or what Status says |

A Location that begins with "/" goes to the client when there is anything beside it: RFC 3875 section 6.2.2 allows
nothing there, and what a program has to say, a cookie above all, would be lost. It goes there, too, when it is more
than path and query: the client has use for a fragment. RFC 9110 section 10.2.2 allows both. What can't stand in a URI
(a space, UTF-8) is percent-encoded on the way to the client.

Lines may end with CRLF or LF (section 6.2, "NL"), also by turns. Beyond that nothing is mended: a line that is no
field, a repeated CGI field, a control character in a value or a header without any CGI field is a `BadResponse`,
answered with 502: a program that prints its errors, or a stack trace, where its header should be must not have them
taken for one. CR, LF and NUL never get into the header that goes to the client.
"""

from __future__ import annotations

import re

from poolsrv_http import ResponseHeader

__all__ = ["BadResponse", "CgiHeader", "CgiHeaderParser"]

_find_end = re.compile(rb"(?:\A|\n)\r?\n").search  # \A is the buffer's start, also in a search from a later place
_match_name = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_match_status = re.compile(rb"([1-9][0-9]{2})(?:[ \t]+(.*))?").fullmatch
_match_length = re.compile(rb"[0-9]{1,18}").fullmatch
# What is in no URI (RFC 3986 section 2), percent signs that begin no escape included.
_replace_bad = re.compile(rb"%(?![0-9A-Fa-f]{2})|[^!#-;=?-\[\]_a-z~]").sub
_HEADER_BYTES = bytes([9, 10, 13, *range(32, 127), *range(128, 256)])

# About this server's connection, which the program does not know (RFC 9110 section 7.6.1); and Status, which becomes
# the status line. X-CGI-* is for the server alone (RFC 3875 section 6.3.5).
_NOT_PASSED = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"status",
        b"content-length",  # sent by the framing
    )
)


class BadResponse(Exception):
    """What the program printed is no CGI response: 502. The text is one line, for the log."""


class CgiHeader(ResponseHeader, frozen=True, kw_only=True):
    """A program's header, checked. The status of a local redirect is 200.

    :ivar local: a local redirect; the program's output beyond it is of no use.
    :ivar location: of a local redirect, path and query.
    """

    local: bool = False
    location: str = ""


class CgiHeaderParser:
    """Feed it a program's output until the header is there.

    :param max_size: bytes that the header may have, its empty line included.
    :param max_fields: lines that it may have.
    :ivar surplus: once the header is there, the bytes behind it: the beginning of the document.
    """

    __slots__ = ("_buffer", "_max_fields", "_max_size", "surplus")

    def __init__(self, max_size: int = 32768, max_fields: int = 500) -> None:
        self._max_fields = max_fields
        self._max_size = max_size
        self._buffer = b""
        self.surplus = b""

    @property
    def started(self) -> bool:
        """Whether the program has printed anything."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> CgiHeader | None:
        """Take output; the header once it is whole, else None.

        :raises BadResponse: the header is malformed or too large.
        """
        start = max(len(self._buffer) - 2, 0)
        self._buffer = buffer = self._buffer + data if self._buffer else data
        end = _find_end(buffer, start)
        if end is None:
            if len(buffer) > self._max_size:
                raise BadResponse(f"no end of the header within max_header_size ({self._max_size} bytes)")
            return None
        if end.end() > self._max_size:
            raise BadResponse(f"the header is over max_header_size ({self._max_size} bytes)")
        self.surplus = buffer[end.end() :]
        return _parse(buffer[: end.start()], self._max_fields)

    def end(self) -> BadResponse:
        """What to log when the output has ended before its header has."""
        if not self._buffer:
            return BadResponse("the program printed nothing")
        return BadResponse(f"the program ended within its header: {self._buffer[-100:]!r}")


def _parse(header: bytes, max_fields: int) -> CgiHeader:
    if bad := header.translate(None, _HEADER_BYTES):
        raise BadResponse(f"a byte {bad[:1]!r} in the header")
    lines = header.split(b"\n")
    if len(lines) > max_fields:
        raise BadResponse(f"more header fields than max_header_fields ({max_fields})")
    cgi: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    hop_by_hop: list[bytes] = []
    beside = 0  # fields, but for those that are for this server alone
    for line in lines:
        name, colon, value = line.removesuffix(b"\r").partition(b":")
        if not colon or not _match_name(name):
            raise BadResponse(f"not a header field: {line[:100]!r}")
        value = value.strip(b" \t")
        if b"\r" in value:
            raise BadResponse(f"a bare CR in the header: {line[:100]!r}")
        lower = name.lower()
        if lower in (b"status", b"location", b"content-type", b"content-length"):
            if lower in cgi and not (lower == b"content-length" and cgi[lower] == value):
                raise BadResponse(f"{name.decode()} twice")
            cgi[lower] = value
        elif lower == b"connection":
            hop_by_hop = [option.strip(b" \t") for option in value.lower().split(b",")]
        if lower.startswith(b"x-cgi-"):
            continue
        beside += lower != b"location"
        if lower not in _NOT_PASSED:
            fields.append((name, encoded_location(value) if lower == b"location" else value))
    if hop_by_hop:
        fields = [field for field in fields if field[0].lower() not in hop_by_hop]
    return _shape(cgi, fields, alone=not beside)


def encoded_location(value: bytes) -> bytes:
    """A program's Location as a URI reference (RFC 9110 section 10.2.2): what can't be in one is percent-encoded.

    What is encoded already stays as it is. Clients take a backslash for a slash, so that `/\\a` would name a host.
    """
    reference, hash_sign, fragment = value.partition(b"#")
    fragment = _replace_bad(_escape, fragment).replace(b"#", b"%23")
    return _replace_bad(_escape, reference) + hash_sign + fragment


def _is_local(location: bytes) -> bool:
    """Whether it is path and query, without fragment, as they stand in a request (RFC 3875 section 6.2.2)."""
    return location.startswith(b"/") and b"#" not in location and encoded_location(location) == location


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _shape(cgi: dict[bytes, bytes], fields: list[tuple[bytes, bytes]], alone: bool) -> CgiHeader:
    """Which of the shapes it is (RFC 3875 section 6.2).

    :param alone: whether there is one field.
    """
    location = cgi.get(b"location")
    if location is not None and alone and _is_local(location):
        return CgiHeader(status=200, local=True, location=location.decode("ascii"))
    if location is None and b"status" not in cgi and b"content-type" not in cgi:
        raise BadResponse("neither Content-Type nor Location nor Status")
    if location == b"" or cgi.get(b"content-type") == b"":
        raise BadResponse("an empty Location or Content-Type")
    status, reason = (200 if location is None else 302), b""
    if b"status" in cgi:
        matched = _match_status(cgi[b"status"])
        # 1xx would leave the client waiting for the real response; above 599 there is no class (RFC 9110 section 15).
        if matched is None or not 200 <= int(matched[1]) <= 599:
            raise BadResponse(f"Status {cgi[b'status'][:100]!r}")
        status, reason = int(matched[1]), matched[2] or b""
    length = cgi.get(b"content-length")
    if length is not None and not _match_length(length):
        raise BadResponse(f"Content-Length {length[:100]!r}")
    return CgiHeader(
        status=status,
        reason=reason,
        fields=tuple(fields),
        content_length=None if length is None else int(length),
    )
