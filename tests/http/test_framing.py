"""The framings of a response."""

from __future__ import annotations

import time
import tracemalloc
from unittest.mock import Mock

import h11
import pytest
from poolsrv_http import framing
from poolsrv_http.framing import CONTINUE, FramedResponse, Framing, http_date
from poolsrv_http.headers import ResponseHeader

from tests.helpers.http import read_response as read

DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"


def header(text: bytes) -> ResponseHeader:
    """A header from its lines, as a program would print them."""
    status, reason, length = 200, b"", None
    fields = []
    for line in text.splitlines()[:-1]:
        name, _, value = line.partition(b": ")
        if name == b"Status":
            number, _, reason = value.partition(b" ")
            status = int(number)
        elif name == b"Content-Length":
            length = int(value)
        else:
            fields.append((name, value))
    return ResponseHeader(status=status, reason=reason, fields=tuple(fields), content_length=length)


def response(parsed: ResponseHeader, method: str = "GET", minor: int = 1, keep: bool = True) -> FramedResponse:
    return FramedResponse(parsed, method=method, version=(1, minor), keep_alive=keep, date=DATE)


class TestFraming:
    def test_chunked(self) -> None:
        """RFC 9112 section 7.1: without a length, HTTP/1.1 gets chunks."""
        made = response(header(b"Content-Type: a/b\n\n"))
        assert made.framing is Framing.CHUNKED
        data = made.head + made.encode(b"hello ") + made.encode(b"") + made.encode(b"world") + made.finish()
        head, body, again = read(data, closed=False)
        assert (head.status_code, body, again) == (200, b"hello world", True)
        assert made.keep_alive
        assert made.intact

    def test_chunks_moved_past(self) -> None:
        """RFC 9112 section 7.1: the same bytes, the data moved by the kernel."""
        made = response(header(b"Content-Type: a/b\n\n"))
        data = (
            made.head
            + made.open_chunk(3)
            + b"abc"
            + made.open_chunk(20)
            + b"d" * 20
            + made.encode(b"e")
            + made.finish()
        )
        assert read(data, closed=False)[1:] == (b"abc" + b"d" * 20 + b"e", True)
        made = response(header(b"Content-Type: a/b\n\n"))
        data = made.head + made.open_chunk(3) + b"abc" + made.finish()
        assert read(data, closed=False)[1:] == (b"abc", True)

    def test_content_length(self) -> None:
        """RFC 9112 section 6.3: what exceeds the length is cut off."""
        made = response(header(b"Content-Type: a/b\nContent-Length: 5\n\n"))
        data = made.head + made.encode(b"abc") + made.encode(b"defgh") + made.encode(b"ijk") + made.finish()
        assert read(data, closed=False)[1:] == (b"abcde", True)
        assert made.keep_alive
        assert not made.wants_body

    def test_content_length_falls_short(self) -> None:
        """RFC 9112 section 8: an incomplete body is shown by closing."""
        made = response(header(b"Content-Type: a/b\nContent-Length: 5\n\n"))
        made.encode(b"ab")
        made.advance(2)
        assert made.remaining == 1
        assert made.finish() == b""
        assert not made.keep_alive
        assert not made.intact

    def test_died_in_mid_body(self) -> None:
        """RFC 9112 section 7.1, section 8: no last chunk, so that the client knows."""
        made = response(header(b"Content-Type: a/b\n\n"))
        data = made.head + made.encode(b"abc") + made.finish(complete=False)
        assert not made.keep_alive
        assert not made.intact
        with pytest.raises(h11.RemoteProtocolError):
            read(data)

    def test_http_1_0(self) -> None:
        """RFC 9112 section 6.3: no chunks for HTTP/1.0; without a length the end is the connection's end."""
        made = response(header(b"Content-Type: a/b\n\n"), minor=0)
        assert made.framing is Framing.CLOSE
        assert not made.keep_alive
        assert b"Transfer-Encoding" not in made.head
        data = made.head + made.encode(b"abc") + made.finish()
        assert read(data)[1:] == (b"abc", False)
        made = response(header(b"Content-Type: a/b\nContent-Length: 0\n\n"), minor=0)
        assert made.keep_alive
        assert b"\r\nConnection: keep-alive\r\n" in made.head

    def test_no_keep_alive(self) -> None:
        """RFC 9112 section 9.6: a server that will close says so."""
        made = response(header(b"Content-Type: a/b\n\n"), keep=False)
        assert b"\r\nConnection: close\r\n" in made.head
        assert read(made.head + made.finish())[2] is False

    @pytest.mark.parametrize(
        ("text", "method", "length"),
        [
            (b"Content-Type: a/b\n\n", "HEAD", None),
            (b"Content-Type: a/b\nContent-Length: 9\n\n", "HEAD", b"9"),
            (b"Status: 204\nContent-Length: 9\n\n", "GET", None),
            (b"Status: 205\n\n", "GET", b"0"),
            (b"Status: 304\nContent-Length: 9\n\n", "GET", b"9"),
        ],
    )
    def test_no_body(self, text: bytes, method: str, length: bytes | None) -> None:
        """RFC 9110 sections 6.4.1 and 8.6, 15.3.6: responses without content, and what their Content-Length may be."""
        made = response(header(text), method=method)
        assert not made.wants_body
        data = made.head + made.encode(b"abc") + made.finish()
        assert data == made.head
        head, body, again = read(data, method, closed=False)
        assert (body, again) == (b"", True)
        assert dict(head.headers).get(b"content-length") == length
        assert made.keep_alive

    def test_date_and_server(self) -> None:
        """RFC 9110 sections 6.6.1 and 10.2.4: sent once, the program's own goes before."""
        assert made_fields(b"Content-Type: a/b\n\n")[b"date"] == DATE
        assert made_fields(b"Content-Type: a/b\n\n")[b"server"] == b"poolsrv"
        own = response(header(b"Content-Type: a/b\nDate: x\nServer: y\n\n"))
        assert own.head.lower().count(b"date:") == 1
        assert own.head.lower().count(b"server:") == 1

    def test_status_line(self) -> None:
        """RFC 9112 section 4: the reason phrase; unknown codes have an empty one, with the space before it."""
        assert response(header(b"Status: 404\n\n")).head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert response(header(b"Status: 404 Gone Fishing\n\n")).head.startswith(b"HTTP/1.1 404 Gone Fishing\r\n")
        assert response(header(b"Status: 299\n\n")).head.startswith(b"HTTP/1.1 299 \r\n")

    def test_http_date(self) -> None:
        """RFC 9110 section 5.6.7: IMF-fixdate."""
        assert http_date(784111777.9) == DATE
        assert http_date(0) == b"Thu, 01 Jan 1970 00:00:00 GMT"
        assert (
            abs(
                time.mktime(time.strptime(http_date().decode(), "%a, %d %b %Y %H:%M:%S GMT"))
                - time.mktime(time.gmtime())
            )
            < 5
        )

    def test_the_dates_of_former_seconds_are_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that answers in each second for an hour needs no more memory afterwards."""
        seconds = iter(range(784111777, 784111777 + 3601))
        monkeypatch.setattr(framing, "time", Mock(gmtime=time.gmtime, time=lambda: float(next(seconds))))
        http_date()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(3600):
                http_date()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 4096

    def test_continue(self) -> None:
        """RFC 9110 section 15.2.1."""
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        client.receive_data(CONTINUE)
        assert isinstance(client.next_event(), h11.InformationalResponse)


def made_fields(text: bytes) -> dict[bytes, bytes]:
    made = response(header(text))
    return dict(read(made.head + made.finish(), closed=False)[0].headers)
