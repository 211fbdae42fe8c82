"""One HTTP/1.x request head: bytes in, a `RequestHead` out, or the status to refuse it with.

Request smuggling lives on two readers that disagree about where a request ends. So two readers here have to accept a
head: llhttp (by way of `httptools`), which takes it apart, and the checks of this file, which know what RFC 9112
forbids and llhttp lets through (some of it only in some versions). Nothing is repaired: what the RFC lets a recipient
repair or refuse is refused, with one exception, the empty lines before a request line.

How a head is found, so that the answer never depends on how the bytes were split:

1. Empty lines (CRLF alone) before the request line are skipped, at most `MAX_EMPTY_LINES` (RFC 9112 section 2.2).
2. A first byte that no method can begin with is refused at once (a TLS handshake, say), rather than at a timeout.
3. The head ends at the first empty line, where LF alone counts as a line end too. That finds the end of every head,
   also of one with bare LFs, which is then refused as a whole. Without this it would wait for more until its timeout.
4. The limits are taken before the contents: the request line's (414, 501), then the head's (431).

The body is not llhttp's business: `decoders.py` reads it. The parser stops exactly behind the head and gives back what
it has beyond it, so that a body can go from the socket to a program without passing through here.

After a refusal nothing says reliably where the next request begins: answer, then close.

Sources: RFC 9112 sections 2 to 6 and 9.3, RFC 9110 sections 5, 7.2, 9.1 and 10.1.1.
"""

from __future__ import annotations

import re
from typing import NoReturn

import httptools

from .authority import is_authority
from .request_head import RequestError, RequestHead, RequestLimits

__all__ = ["RequestParser"]

MAX_EMPTY_LINES = 4
MAX_METHOD_LENGTH = 64

# What a head may consist of: HTAB, CR and LF (their places are checked apart), visible ASCII, space and obs-text
# (RFC 9110 section 5.5). NUL, the other controls and DEL are in no place of a head.
_HEAD_BYTES = bytes([9, 10, 13, *range(32, 127), *range(128, 256)])

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TOKEN_START = frozenset(b"!#$%&'*+.^_`|~-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_match_token = re.compile(_TOKEN).fullmatch
# A line that does not begin with a field's name and its colon (RFC 9112 sections 5, 5.1 and 5.2); the end has none.
_find_bad_line = re.compile(rb"\r\n(?!" + _TOKEN + rb":|\r\n|\Z)").search
_find_head_end = re.compile(rb"\n\r?\n").search
# RFC 9112 section 3: one space between the parts, nothing around them. The target: visible ASCII without "#", which
# has no place in a request (section 3.2); clients do send the likes of | and { in it, so these are let through.
_match_request_line = re.compile(rb"(" + _TOKEN + rb") ([!-\"$-~]+) HTTP/([0-9])\.([0-9])").fullmatch
# RFC 9112 section 3.2.2: absolute-form; userinfo is refused (RFC 9110 section 4.2.4) by `is_authority`.
_match_absolute = re.compile(r"https?://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE | re.DOTALL).fullmatch
_match_length = re.compile(rb"[0-9]{1,18}").fullmatch

# Methods that llhttp knows and treats without a quirk of its own. Any other is shown to it as POST.
_PLAIN_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"))
# CONNECT asks for a tunnel and TRACE for an echo of the request, cookies included: no handler may answer them. PRI is
# how an HTTP/2 client starts (RFC 9113 section 3.4). RFC 9110 section 9.1: 501.
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE", b"PRI"))

# Made at the import: the codec is a module of its own, and a worker may no longer be able to read Python's files.
_ESCAPED = tuple([chr(byte).encode("unicode_escape").decode("ascii") for byte in range(256)])


class RequestParser:
    """Finds and checks request heads, one after another, on one connection.

    Feed it what arrives until `feed` returns a `RequestHead`; then `surplus` holds the bytes behind the head (of the
    body, or of the next request). They are the caller's: the parser keeps none of them, so give them back to `feed`
    when the body has been read. After a `RequestError` the parser is of no further use.
    """

    __slots__ = ("_buffer", "_complete", "_fields", "_headers", "_limits", "_repeated", "_scanned", "surplus")

    def __init__(self, limits: RequestLimits | None = None) -> None:
        self._limits = limits or RequestLimits()
        self._buffer = bytearray()
        self._scanned = 0
        self._headers: dict[bytes, bytes] = {}
        self._fields = 0
        self._repeated = b""
        self._complete = False
        self.surplus = b""

    @property
    def started(self) -> bool:
        """Whether a part of a head is here. Then silence is a 408 (header timeout), and not an idle connection."""
        return bool(self._buffer.lstrip(b"\r\n"))

    def feed(self, data: bytes) -> RequestHead | None:
        """Take bytes; the next request once its head is whole, else None.

        Raises RequestError. Never looks at more than one head.
        """
        if not self._buffer:  # nearly always: the whole head in one piece
            end = _find_head_end(data)
            if end is not None and data[0] in _TOKEN_START:
                stop = end.end()
                request = self._parse(data[:stop])
                self.surplus = data[stop:]
                return request
            if not data:
                return None
        self._buffer += data
        return self._feed_slowly()

    def _feed_slowly(self) -> RequestHead | None:
        """Take what is not a whole head in one piece: empty lines before it, limits, waiting for more."""
        buffer = self._buffer
        start = 0
        while buffer.startswith(b"\r\n", start):
            start += 2
            if start > 2 * MAX_EMPTY_LINES:
                raise RequestError(400, "too many empty lines before the request line")
        first = buffer[start : start + 2]
        if first[:1] and first[0] not in _TOKEN_START and first != b"\r":
            raise RequestError(400, f"no request line begins with {bytes(first[:1])!r}")
        end = _find_head_end(buffer, max(start, self._scanned))
        if end is None:
            self._check_limits(buffer, start)
            self._scanned = max(start, len(buffer) - 2)  # the end may be split: LF CR | LF
            return None
        head, surplus = bytes(buffer[start : end.end()]), bytes(buffer[end.end() :])
        self._buffer = bytearray()
        self._scanned = 0
        request = self._parse(head)
        self.surplus = surplus
        return request

    def _check_limits(self, head: bytes | bytearray, start: int = 0) -> None:
        """Raise if the head that begins at `start`, whole or not, is beyond a limit. Refuses every longer one likewise.

        Looks at the request line alone, for it is called again with every piece of a head.
        """
        limits = self._limits
        length = min(len(head) - start, limits.max_head + 1)
        longest = MAX_METHOD_LENGTH + limits.max_target + len(b"  HTTP/1.1\r")
        begin = bytes(head[start : start + min(length, longest + 1)])
        line_end = begin.find(b"\n")
        line = begin[: line_end if line_end >= 0 else longest]
        method_end = line.find(b" ", 0, MAX_METHOD_LENGTH + 1)
        if method_end < 0 and len(line) > MAX_METHOD_LENGTH:
            known = _match_token(line[:MAX_METHOD_LENGTH])
            raise RequestError(
                501 if known else 400, f"the method is over {MAX_METHOD_LENGTH} bytes", _printable(line[:100])
            )
        if method_end < 0:
            target_length = 0  # there is none yet
        elif line.rfind(b" ") == method_end:  # the target goes on to the end of the line, as far as it is here
            target_length = len(line) - method_end - 1
        else:
            target_length = line.rfind(b" ") - method_end - 1
        if target_length > limits.max_target or (line_end < 0 and length > longest):
            raise RequestError(
                414, f"the target is over max_target_size ({limits.max_target} bytes)", _printable(line[:100])
            )
        if length > limits.max_head:
            raise RequestError(431, f"the head is over max_header_size ({limits.max_head} bytes)", _printable(line))

    def _parse(self, head: bytes) -> RequestHead:
        """Read a whole head, from the first byte of the request line to the empty line."""
        limits = self._limits
        line = head[: head.find(b"\n")]
        matched = _match_request_line(line, 0, len(line) - 1) if line.endswith(b"\r") else None
        if matched is None or len(head) > limits.max_target or len(head) > limits.max_head:
            self._check_limits(head)
        if matched is None:
            _refuse_request_line(line)
        method, raw_target, major, minor = matched.groups()
        text = line[:-1].decode("ascii")
        if len(method) > MAX_METHOD_LENGTH or (method in _REFUSED_METHODS and major == b"1"):
            raise RequestError(501, f"method {method[:100].decode()} is not served", text)
        if major != b"1":
            raise RequestError(505, f"HTTP version {major.decode()}.{minor.decode()}", text)
        # Any 1.x above 1.1 is served as 1.1 (RFC 9110 section 2.5).
        version = (1, 0) if minor == b"0" else (1, 1)
        if (
            head.translate(None, _HEAD_BYTES)
            or not head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r")
            or _find_bad_line(head)
        ):
            raise RequestError(400, _what_is_wrong(head), text)
        headers = self._take_apart(head, line, method, raw_target, minor, text)
        target = raw_target.decode("ascii")
        host = _checked_host(headers, version, text)
        if target[0] != "/":
            target, host = _not_origin_form(target, method, host, text)
        path, _, query = target.partition("?")
        chunked = b"transfer-encoding" in headers
        if chunked:
            _check_transfer_encoding(headers, version, text)
        length = headers.get(b"content-length")
        if length is not None and not _match_length(length):
            raise RequestError(400, f"Content-Length {_printable(length)}", text)
        expect = headers.get(b"expect")
        if expect is not None and version == (1, 1) and expect.lower() != b"100-continue":
            raise RequestError(417, f"Expect: {_printable(expect)}", text)
        connection = headers.get(b"connection")
        if connection is None:
            keep_alive = version == (1, 1)
        else:
            options = [option.strip(b" \t") for option in connection.lower().split(b",")]
            keep_alive = b"close" not in options and (version == (1, 1) or b"keep-alive" in options)
        return RequestHead(
            line=text,
            method=method.decode("ascii"),
            path=path,
            query=query,
            target=target,
            version=version,
            headers=headers,
            host=host,
            content_length=None if length is None else int(length),
            chunked=chunked,
            keep_alive=keep_alive,
            expect_continue=expect is not None
            and version == (1, 1)
            and (chunked or (length is not None and int(length) > 0)),
        )

    def _take_apart(
        self, head: bytes, line: bytes, method: bytes, target: bytes, minor: bytes, text: str
    ) -> dict[bytes, bytes]:
        """The header fields of `head`, by llhttp."""
        if method not in _PLAIN_METHODS or minor > b"1":
            head = b"POST %b HTTP/1.%b%b" % (target, min(minor, b"1"), head[len(line) - 1 :])
        headers: dict[bytes, bytes] = {}
        self._headers = headers
        self._fields = 0
        self._complete = False
        try:
            httptools.HttpRequestParser(self).feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # a client that offers another protocol (h2c, say) and gets HTTP/1.1 (RFC 9110 section 7.8)
        except httptools.HttpParserError as error:
            raise RequestError(400, str(error), text) from None
        if self._fields > self._limits.max_fields:
            raise RequestError(431, f"more header fields than max_header_fields ({self._limits.max_fields})", text)
        if not self._complete:
            raise RequestError(400, "the header has no end", text)
        if self._repeated:
            raise RequestError(400, f"{self._repeated.decode('ascii')} twice", text)
        return headers

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field line, from llhttp. Lists are joined with a comma, cookies with a semicolon (RFC 6265)."""
        self._fields += 1
        name = name.lower()
        value = value.strip(b" \t")
        headers = self._headers
        if name in headers:
            if name in self._limits.single:
                self._repeated = name
            value = (headers[name] + (b"; " if name == b"cookie" else b", ") + value).strip(b" \t")
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Take the empty line, from llhttp."""
        self._complete = True


def _checked_host(headers: dict[bytes, bytes], version: tuple[int, int], text: str) -> bytes:
    """RFC 9112 section 3.2: exactly one valid Host in HTTP/1.1, at most one in 1.0 (it is one of `SINGLE_FIELDS`)."""
    host = headers.get(b"host")
    if host is None:
        if version == (1, 1):
            raise RequestError(400, "no Host", text)
        return b""
    if not is_authority(host):
        raise RequestError(400, f"Host {_printable(host)}", text)
    return host


def _not_origin_form(target: str, method: bytes, host: bytes, text: str) -> tuple[str, bytes]:
    """RFC 9112 sections 3.2.2 and 3.2.4: absolute-form, whose host counts and not the Host field's, and `*`."""
    if target == "*" and method == b"OPTIONS":
        return target, host
    matched = _match_absolute(target)
    if matched is None or not matched[1] or matched[1][0] == ":" or not is_authority(matched[1].encode()):
        raise RequestError(400, "the target is neither a path nor an http URL", text)
    path = matched[2] or ("*" if method == b"OPTIONS" and not matched[3] else "/")
    return path + (matched[3] or ""), matched[1].encode()


def _check_transfer_encoding(headers: dict[bytes, bytes], version: tuple[int, int], text: str) -> None:
    """RFC 9112 sections 6.1 and 6.3. Only `chunked`, once and alone, is a body that can be read here."""
    codings = [coding.strip(b" \t").lower() for coding in headers[b"transfer-encoding"].split(b",")]
    if b"content-length" in headers:
        raise RequestError(400, "both Transfer-Encoding and Content-Length", text)
    if version == (1, 0):
        raise RequestError(400, "Transfer-Encoding in HTTP/1.0", text)
    if codings[-1] != b"chunked" or codings.count(b"chunked") != 1 or b"" in codings:
        raise RequestError(400, f"Transfer-Encoding {_printable(b', '.join(codings))}", text)
    if len(codings) > 1:
        raise RequestError(501, f"Transfer-Encoding {_printable(b', '.join(codings))}", text)


def _refuse_request_line(line: bytes) -> NoReturn:
    text = _printable(line.rstrip(b"\r"))
    if not line.endswith(b"\r"):
        raise RequestError(400, "a line that ends with LF alone", text)
    raise RequestError(400, "the request line is malformed", text)


def _what_is_wrong(head: bytes) -> str:
    if bad := head.translate(None, _HEAD_BYTES):
        return f"a byte {bad[:1]!r} in the head"
    if head.count(b"\r\n") != head.count(b"\n"):
        return "a line that ends with LF alone"
    if head.count(b"\r\n") != head.count(b"\r"):
        return "a bare CR"
    bad_line = _find_bad_line(head)
    if bad_line is None or head[bad_line.end() : bad_line.end() + 1] in (b" ", b"\t"):
        return "a line that begins with whitespace (obs-fold)"
    return f"not a header field: {_printable(head[bad_line.end() : bad_line.end() + 60])}"


def _printable(data: bytes) -> str:
    """Bytes from a client as one line of ASCII, at most 200 characters."""
    return "".join([_ESCAPED[byte] for byte in data[:200]])
