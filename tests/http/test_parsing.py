"""Request heads and bodies: what the corpus of hostile requests does not show."""

from __future__ import annotations

import pytest
from poolsrv_http.decoders import BodyLimits, ChunkedDecoder, LengthDecoder, body_decoder
from poolsrv_http.head import RequestParser
from poolsrv_http.request_head import RequestError, RequestHead, RequestLimits


def parse(data: bytes, limits: RequestLimits | None = None) -> RequestHead:
    request = RequestParser(limits).feed(data)
    assert request is not None
    return request


def refusal(data: bytes, limits: RequestLimits | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        RequestParser(limits).feed(data)
    return caught.value


def test_parts_of_a_request() -> None:
    """RFC 9112 section 3: the request line and the fields."""
    request = parse(b"PUT /a%20b/c?d=e?f HTTP/1.1\r\nHost: h:8080\r\nX-Y: \t z \r\nX-Empty:\r\n\r\n")
    assert request.line == "PUT /a%20b/c?d=e?f HTTP/1.1"
    assert (request.method, request.path, request.query) == ("PUT", "/a%20b/c", "d=e?f")
    assert request.target == "/a%20b/c?d=e?f"
    assert request.version == (1, 1)
    assert request.headers == {b"host": b"h:8080", b"x-y": b"z", b"x-empty": b""}
    assert not request.has_body


@pytest.mark.parametrize(
    ("field", "values", "joined"),
    [
        (b"X-Y", [b"a", b"b, c"], b"a, b, c"),
        (b"X-Y", [b"a", b""], b"a,"),
        (b"X-Y", [b"", b" ", b"a"], b",, a"),
        (b"Cookie", [b"a=1", b"b=2"], b"a=1; b=2"),
        (b"Cookie", [b"a=1", b""], b"a=1;"),
    ],
)
def test_repeated_fields_are_joined(field: bytes, values: list[bytes], joined: bytes) -> None:
    """RFC 9110 section 5.3, and RFC 9113 section 8.2.3 for cookies. No whitespace is around a value (section 5.5)."""
    lines = b"".join(b"%b: %b\r\n" % (field, value) for value in values)
    headers = parse(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % lines).headers
    assert headers[field.lower()] == joined


def test_surplus_is_given_back() -> None:
    """RFC 9112 section 9.3.2: what is behind a request belongs to the next one."""
    parser = RequestParser()
    first = parser.feed(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HT")
    assert first is not None
    assert (first.path, parser.surplus) == ("/1", b"GET /2 HT")
    assert parser.feed(parser.surplus) is None
    started = parser.started
    assert started
    request = parser.feed(b"TP/1.1\r\nHost: a\r\n\r\n")
    assert request is not None
    assert request.path == "/2"
    assert parser.surplus == b""


def test_empty_lines_are_no_beginning() -> None:
    """RFC 9112 section 2.2: an empty line sent after a request is no slow request."""
    parser = RequestParser()
    assert parser.feed(b"\r\n") is None
    assert not parser.started
    assert parser.feed(b"") is None


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"keep-alive, close", False),
        (b"1.1", b"x", True),
        (b"1.0", None, False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"Keep-Alive ,x", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_keep_alive(version: bytes, connection: bytes | None, keep: bool) -> None:
    """RFC 9112 section 9.3: which requests keep the connection open."""
    field = b"" if connection is None else b"Connection: " + connection + b"\r\n"
    assert parse(b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + field + b"\r\n").keep_alive is keep


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", False),
        (b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", False),
        (b"POST / HTTP/1.0\r\nExpect: something\r\nContent-Length: 1\r\n\r\n", False),
    ],
)
def test_expect(head: bytes, expected: bool) -> None:
    """RFC 9110 section 10.1.1: 100-continue is for a body that is yet to come, and not for HTTP/1.0."""
    assert parse(head).expect_continue is expected


def test_limits_are_exact() -> None:
    """RFC 9110 section 15.5.15, RFC 6585 section 5: a limit's last byte is allowed, the next is not."""
    limits = RequestLimits(max_head=120, max_target=20, max_fields=3)
    assert parse(b"GET /" + b"a" * 19 + b" HTTP/1.1\r\nHost: a\r\n\r\n", limits).path == "/" + "a" * 19
    assert refusal(b"GET /" + b"a" * 20 + b" HTTP/1.1\r\nHost: a\r\n\r\n", limits).status == 414
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n"
    fill = 120 - len(head % b"")
    assert parse(head % (b"x" * fill), limits)
    assert refusal(head % (b"x" * (fill + 1)), limits).status == 431
    assert parse(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\n\r\n", limits)
    assert refusal(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\nX: 3\r\n\r\n", limits).status == 431


def test_reasons_are_one_line_of_ascii() -> None:
    """RFC 9110 section 15: a reason goes to the log, where it may not forge lines."""
    for head in (
        b"GET /\x1b[2J\n HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \xe4\r\n\r\n",
    ):
        error = refusal(head)
        assert error.status == 400
        assert str(error).isprintable()
        assert (str(error) + error.request_line).isascii()


def test_length_decoder() -> None:
    """RFC 9112 section 6.3, rule 6: exactly this many bytes, read or skipped."""
    decoder = LengthDecoder(10)
    assert decoder.feed(b"abc") == b"abc"
    decoder.advance(4)
    assert decoder.remaining == 3
    assert decoder.feed(b"defGET") == b"def"
    assert decoder.done
    assert decoder.surplus == b"GET"


def test_chunked_decoder() -> None:
    """RFC 9112 section 7.1.3: the decoded body, whole, and what is behind it."""
    data = b"5;x=y\r\nabcde\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\nGET"
    for size in range(1, len(data)):
        decoder = ChunkedDecoder(BodyLimits(max_size=15))
        body, surplus = b"", b""
        for at in range(0, len(data), size):
            if decoder.done:
                surplus += data[at : at + size]
                continue
            body += decoder.feed(data[at : at + size])
            surplus = decoder.surplus
        assert body == b"abcde0123456789"
        assert surplus == b"GET"


def test_chunked_body_too_large() -> None:
    """RFC 9110 section 15.5.14: refused by the size line, before the data."""
    decoder = ChunkedDecoder(BodyLimits(max_size=15))
    decoder.feed(b"A\r\n0123456789\r\n")
    with pytest.raises(RequestError) as caught:
        decoder.feed(b"6\r\n")
    assert caught.value.status == 413


def test_body_decoder_of_no_body() -> None:
    """RFC 9112 section 6.3, rule 7: neither field, no body."""
    decoder = body_decoder(parse(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"), BodyLimits(max_size=0))
    assert decoder.done
    assert decoder.feed(b"x") == b""
    assert decoder.surplus == b"x"


def test_a_chunked_body_can_be_read_in_turns() -> None:
    """Whatever the number of lines for each, the answer is the same."""
    data = b"5;x=y\r\nabcde\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\nGET"
    for lines in range(1, 9):
        for size in (1, 3, 7, len(data)):
            decoder = ChunkedDecoder(BodyLimits(max_size=15))
            body, waiting = b"", b""
            for at in range(0, len(data), size):
                waiting += data[at : at + size]
                while waiting and not decoder.done:
                    body += decoder.feed(waiting, lines)
                    waiting = decoder.surplus
            assert (body, waiting) == (b"abcde0123456789", b"GET")
