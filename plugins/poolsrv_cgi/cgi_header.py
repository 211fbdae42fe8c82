"""The header that a CGI program prints before its document (RFC 3875 section 6).

The four kinds of response (section 6.2) become three here, since the last two differ only in what follows:

| response | recognised by | here |
| --- | --- | --- |
| document | Content-Type or Status, no Location | status 200 or what Status says |
| local redirect | Location alone, a path and query | `local` is True: the server makes a new request of `location` |
| client redirect, with or without document | any other Location | status 302 or what Status says |

A Location that begins with "/" goes to the client if there is any other field: RFC 3875 section 6.2.2 allows none, and
what the program sets there, above all a cookie, would be lost. It also goes to the client if it is more than path and
query, since the client has use for a fragment. RFC 9110 section 10.2.2 allows both. What can't stand in a URI (a space,
UTF-8) is percent-encoded on the way to the client.

Lines may end with CRLF or LF (section 6.2, "NL"), also mixed. Nothing else is repaired: a line that is no field, a
repeated CGI field, a control character in a value, or a header without any CGI field is a `BadResponse`, answered with
502. Errors or a stack trace that a program prints in place of its header must not be taken for one. CR, LF and NUL
never get into the header that goes to the client.
"""

from __future__ import annotations

import re
from functools import lru_cache

from poolsrv_http import CONNECTION_FIELDS, ResponseHeader

__all__ = ["BadResponse", "CgiHeader", "CgiHeaderParser"]

_find_end = re.compile(rb"(?:\A|\n)\r?\n").search  # \A is the buffer's start, also in a search that begins later
_match_name = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_match_status = re.compile(rb"([1-9][0-9]{2})(?:[ \t]+(.*))?").fullmatch
_match_length = re.compile(rb"[0-9]{1,18}").fullmatch
# What no URI contains (RFC 3986 section 2), percent signs that begin no escape included.
_replace_bad = re.compile(rb"%(?![0-9A-Fa-f]{2})|[^!#-;=?-\[\]_a-z~]").sub
_MOST_KNOWN = 256  # headers that are remembered
_LONGEST_KNOWN = 512  # bytes of each
_HEADER_BYTES = bytes([9, 10, 13, *range(32, 127), *range(128, 256)])

# Fields about the connection and the framing, which are not the program's, and Status, which becomes the status line.
# X-CGI-* is for the server alone (RFC 3875 section 6.3.5).
_NOT_PASSED = CONNECTION_FIELDS | {b"status"}


class BadResponse(Exception):
    """The program's output is no CGI response: 502. The text is one line, for the log."""


class CgiHeader(ResponseHeader, frozen=True, kw_only=True):
    """A program's header, checked. The status of a local redirect is 200.

    :ivar local: a local redirect; the program's output beyond it is of no use.
    :ivar location: of a local redirect, path and query.
    """

    local: bool = False
    location: str = ""


class CgiHeaderParser:
    """Parses a header that arrives in pieces.

    :param max_size: bytes that the header may have, its empty line included.
    :param max_fields: lines that it may have.
    :ivar surplus: once the header is whole, the bytes behind it: the beginning of the document.
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
        """Take output. Returns the header once it is whole, else None.

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
        header = buffer[: end.start()]
        return (_known if len(header) <= _LONGEST_KNOWN else _parse)(header, self._max_fields)

    def end(self) -> BadResponse:
        """The error of an output that has ended before its header has."""
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
    others = 0  # fields besides Location that are not for this server alone
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
        others += lower != b"location"
        if lower not in _NOT_PASSED:
            fields.append((name, encoded_location(value) if lower == b"location" else value))
    if hop_by_hop:
        fields = [field for field in fields if field[0].lower() not in hop_by_hop]
    return _header_of(cgi, fields, alone=not others)


# Most programs print one header all the time, and many the same.
_known = lru_cache(_MOST_KNOWN)(_parse)


def encoded_location(value: bytes) -> bytes:
    """Percent-encode in a Location what can't stand in a URI reference (RFC 9110 section 10.2.2).

    What is encoded already stays as it is. A backslash is encoded too. Clients take it for a slash, so `/\\a` would
    name a host.
    """
    reference, hash_sign, fragment = value.partition(b"#")
    fragment = _replace_bad(_escape, fragment).replace(b"#", b"%23")
    return _replace_bad(_escape, reference) + hash_sign + fragment


def _is_local(location: bytes) -> bool:
    """Whether a Location is path and query without a fragment, as in a request (RFC 3875 section 6.2.2)."""
    return location.startswith(b"/") and b"#" not in location and encoded_location(location) == location


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _header_of(cgi: dict[bytes, bytes], fields: list[tuple[bytes, bytes]], alone: bool) -> CgiHeader:
    """Decide which kind of response it is (RFC 3875 section 6.2).

    :param alone: whether Location is the only field.
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
        # After 1xx the client would wait for the real response; above 599 there is no class (RFC 9110 section 15).
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
