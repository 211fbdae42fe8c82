"""What a program prints, and what the client gets of it."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from poolsrv_cgi.cgi_header import BadResponse, CgiHeader, CgiHeaderParser
from poolsrv_http.framing import FramedResponse, Framing

from tests.helpers.http import read_response as read

DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"


def header(text: bytes) -> CgiHeader:
    parser = CgiHeaderParser()
    parsed = parser.feed(text)
    assert parsed is not None
    return parsed


def feed(pieces: list[bytes]) -> tuple[CgiHeader | None, bytes]:
    """The header in a program's output that comes in pieces, and what is behind it."""
    parser = CgiHeaderParser()
    for number, piece in enumerate(pieces, 1):
        parsed = parser.feed(piece)
        if parsed is not None:
            return parsed, parser.surplus + b"".join(pieces[number:])
    return None, b""


def response(parsed: CgiHeader, method: str = "GET", minor: int = 1, keep: bool = True) -> FramedResponse:
    return FramedResponse(parsed, method=method, version=(1, minor), keep_alive=keep, date=DATE)


class TestProgramHeader:
    def test_document(self) -> None:
        """RFC 3875 section 6.2.1: a document; section 6.3.3: its status is 200."""
        parser = CgiHeaderParser()
        parsed = parser.feed(b"Content-Type: text/plain\r\nX-A: b\r\nx-a:c \n\nbody\n\n")
        assert parsed is not None
        assert (parsed.status, parsed.local) == (200, False)
        assert parsed.fields == ((b"Content-Type", b"text/plain"), (b"X-A", b"b"), (b"x-a", b"c"))
        assert parser.surplus == b"body\n\n"

    @pytest.mark.parametrize("location", ["/", "/a/b?c=d", "//x/y"])
    def test_local_redirect(self, location: str) -> None:
        """RFC 3875 section 6.2.2: a path instead of a URL."""
        parsed = header(b"Location: " + location.encode() + b"\n\n")
        assert parsed.local
        assert parsed.location == location

    @pytest.mark.parametrize(
        "beside",
        [
            b"Set-Cookie: a=b",
            b"Content-Type: text/html",
            b"Content-Length: 0",
            b"Connection: close",
            b"Cache-Control: no-store",
            b"Status: 307",
            b"Transfer-Encoding: chunked",
        ],
    )
    def test_local_redirect_with_anything_beside_it(self, beside: bytes) -> None:
        """RFC 3875 section 6.2.2: a local redirect has no other field; so this is for the client, whole."""
        for text in (b"Location: /a?b\n" + beside + b"\n\n", beside + b"\r\nLocation: /a?b\r\n\r\n"):
            parsed = header(text)
            assert not parsed.local
            assert parsed.status == (307 if beside.startswith(b"Status") else 302)
            assert (b"Location", b"/a?b") in parsed.fields
            if beside.startswith((b"Set", b"Content-T", b"Cache")):
                assert tuple(beside.split(b": ")) in parsed.fields
        assert header(b"Location: /a?b\nX-CGI-Thing: 1\n\n").local  # for this server alone (section 6.3.5)

    @pytest.mark.parametrize(
        ("location", "sent"),
        [
            (b"/a#b", b"/a#b"),
            (b"/a b", b"/a%20b"),
            (b"/a\tb", b"/a%09b"),
            ("/ä?ö#ü".encode(), b"/%C3%A4?%C3%B6#%C3%BC"),
            (b"/\xe4", b"/%E4"),
            (b"/a%20b c", b"/a%20b%20c"),
            (b"/100% #x", b"/100%25%20#x"),
            (b"/%zz#%", b"/%25zz#%25"),
            (b"/a#b#c", b"/a#b%23c"),
            (b'/#"<>\\^`{|}', b"/#%22%3C%3E%5C%5E%60%7B%7C%7D"),
            (b"/\\evil.example\x20", b"/%5Cevil.example"),  # whitespace around a value is none of it
            (b"#top", b"#top"),
            (b"sub dir/x?y", b"sub%20dir/x?y"),
            (b"../x", b"../x"),
            (b"?q=1 2", b"?q=1%202"),
            (b"http://[::1]:80/a b?c#d", b"http://[::1]:80/a%20b?c#d"),
            ("https://example.org/ä".encode(), b"https://example.org/%C3%A4"),
            (b"mailto:a@b", b"mailto:a@b"),
        ],
    )
    def test_location_is_encoded_where_it_must_be(self, location: bytes, sent: bytes) -> None:
        """RFC 9110 section 10.2.2, RFC 3986 section 2.1: what the client gets is a URI reference."""
        for status, text in ((302, b""), (201, b"Status: 201\n"), (302, b"Set-Cookie: a=b\n")):
            parsed = header(text + b"Location: " + location + b"\n\n")
            assert (parsed.status, parsed.local) == (status, False)
            assert dict(parsed.fields)[b"Location"] == sent

    def test_client_redirect(self) -> None:
        """RFC 3875 section 6.2.3: status 302 comes by itself."""
        parsed = header(b"Location: http://example.org/x#y\n\n")
        assert (parsed.status, parsed.local) == (302, False)
        assert parsed.fields == ((b"Location", b"http://example.org/x#y"),)

    def test_client_redirect_with_document(self) -> None:
        """RFC 3875 section 6.2.4: Status, Location, Content-Type; a relative Location is the client's business, too."""
        for location in (b"https://example.org/", b"/elsewhere"):
            parsed = header(b"Status: 303 Look There\nLocation: " + location + b"\nContent-Type: text/html\n\n<p>")
            assert (parsed.status, parsed.reason, parsed.local) == (303, b"Look There", False)

    def test_status(self) -> None:
        """RFC 3875 section 6.3.3: the status with or without words."""
        assert header(b"Status: 404\n\n").status == 404
        assert header(b"STATUS:404 Not Here\n\n").reason == b"Not Here"
        assert header(b"Status: 599 x\n\n").status == 599

    def test_what_is_not_passed(self) -> None:
        """RFC 9110 section 7.6.1: hop-by-hop fields; RFC 3875 section 6.3.5: X-CGI-*."""
        parsed = header(
            b"Content-Type: a/b\nConnection: close, x-hop\nKeep-Alive: 5\nTransfer-Encoding: chunked\nUpgrade: h2c\n"
            b"Trailer: X\nTE: x\nProxy-Connection: x\nX-Hop: 1\nX-CGI-Thing: 2\nStatus: 200\nContent-Length: 3\n"
            b"Y: 3\n\n"
        )
        assert parsed.fields == ((b"Content-Type", b"a/b"), (b"Y", b"3"))
        assert parsed.content_length == 3

    @pytest.mark.parametrize(
        "text",
        [
            b"\n",
            b"\r\n",
            b"hello world\n\n",
            b"Traceback (most recent call last):\n\n",
            b"X-Only: this\n\n",
            b"HTTP/1.1 200 OK\nContent-Type: a/b\n\n",
            b"Content-Type : a/b\n\n",
            b"Content-Type: a/b\n folded\n\n",
            b": x\n\n",
            b"Content-Type: a\rSet-Cookie: b\n\n",
            b"Content-Type: a\r\r\n\r\n",
            b"Content-Type: a\0b\n\n",
            b"Content-Type: a\x1b\n\n",
            b"Content-Type:\n\n",
            b"Content-Type: a/b\nContent-Type: a/b\n\n",
            b"Status: 200\nStatus: 200\n\n",
            b"Location: /a\nLocation: /b\n\n",
            b"Location:\n\n",
            b"Status: 100\n\n",
            b"Status: 101 Switching Protocols\n\n",
            b"Status: 600\n\n",
            b"Status: 99\n\n",
            b"Status: 0200\n\n",
            b"Status: OK\n\n",
            b"Status:\n\n",
            b"Status: 2000\n\n",
            b"Status: -200\n\n",
            b"Content-Type: a/b\nContent-Length: -1\n\n",
            b"Content-Type: a/b\nContent-Length: 1, 1\n\n",
            b"Content-Type: a/b\nContent-Length: 0x1\n\n",
            b"Content-Type: a/b\nContent-Length: 1\nContent-Length: 2\n\n",
            b"Content-Type: a/b\n" + b"X: y\n" * 600 + b"\n",
            b"Content-Type: a/b\nX: " + b"y" * 40000 + b"\n\n",
            b"y" * 40000,
        ],
    )
    def test_bad(self, text: bytes) -> None:
        """RFC 3875 section 6.2, RFC 9110 section 15.6.3: what is no CGI response is 502, however it is split."""
        with pytest.raises(BadResponse) as caught:
            CgiHeaderParser().feed(text)
        assert str(caught.value).isprintable()
        with pytest.raises(BadResponse):
            feed([text[at : at + 7] for at in range(0, len(text), 7)])

    def test_split_at_every_byte(self) -> None:
        """RFC 3875 section 6.1: a pipe has no message boundaries."""
        for text in (b"Content-Type: a/b\r\nStatus: 201 X\r\n\r\n\r\nbody", b"Status: 204\n\n\n"):
            whole = feed([text])
            for at in range(1, len(text)):
                assert feed([text[:at], text[at:]]) == whole
            assert feed([text[at : at + 1] for at in range(len(text))]) == whole

    def test_limit_is_exact(self) -> None:
        """RFC 9110 section 15.6.3: the last byte of the limit is allowed."""
        text = b"Content-Type: a/b\n\n"
        assert CgiHeaderParser(len(text)).feed(text + b"body") is not None
        with pytest.raises(BadResponse):
            CgiHeaderParser(len(text) - 1).feed(text)

    def test_end(self) -> None:
        """RFC 3875 section 6.2: no header at all."""
        parser = CgiHeaderParser()
        assert "nothing" in str(parser.end())
        assert not parser.started
        parser.feed(b"Content-")
        assert "Content-" in str(parser.end())


FIELD = st.tuples(
    st.from_regex(rb"X-[A-Za-z0-9]{1,8}", fullmatch=True).filter(lambda name: not name.lower().startswith(b"x-cgi-")),
    st.from_regex(rb"[!-~\x80-\xff]([ -~\x80-\xff]{0,20}[!-~\x80-\xff])?", fullmatch=True),
)


@settings(deadline=None)
@given(
    status=st.sampled_from([200, 201, 204, 205, 302, 304, 404, 500, 599]),
    fields=st.lists(FIELD, max_size=5),
    pieces=st.lists(st.binary(max_size=50), max_size=6),
    length=st.sampled_from(["none", "exact", "short", "long"]),
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    minor=st.sampled_from([0, 1]),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    size=st.integers(1, 40),
    moved=st.booleans(),
)
def test_what_comes_out_is_what_the_program_said(
    status: int,
    fields: list[tuple[bytes, bytes]],
    pieces: list[bytes],
    length: str,
    method: str,
    minor: int,
    newline: bytes,
    size: int,
    moved: bool,
) -> None:
    """RFC 9112 section 6.3, RFC 3875 section 6: an independent client reads the status, the fields and the body that
    the program printed, and knows when the body is not whole."""
    body = b"".join(pieces)
    lines = [b"Status: %d Words" % status, b"Content-Type: text/plain", *(b": ".join(field) for field in fields)]
    declared = {"none": None, "exact": len(body), "short": len(body) + 3, "long": max(0, len(body) - 3)}[length]
    if declared is not None:
        lines.append(b"Content-Length: %d" % declared)
    output = newline.join([*lines, b"", b""]) + body

    parser = CgiHeaderParser()
    made = None
    sent = b""
    for at in range(0, len(output), size):
        data = output[at : at + size]
        if made is None:
            parsed = parser.feed(data)
            if parsed is None:
                continue
            made = response(parsed, method, minor)
            sent, data = made.head, parser.surplus
        if moved and data and made.framing is Framing.CHUNKED:
            sent += made.open_chunk(len(data)) + data
        elif moved and made.framing is Framing.LENGTH:
            data = data[: made.remaining]
            made.advance(len(data))
            sent += data
        else:
            sent += made.encode(data)
    assert made is not None
    sent += made.finish()

    no_body = method == "HEAD" or status in (204, 205, 304)
    if declared is not None and declared > len(body) and not no_body:
        assert not made.intact
        assert not made.keep_alive
        with pytest.raises(h11.RemoteProtocolError):
            read(sent, method)
        return
    head, got, again = read(sent, method, closed=not made.keep_alive)
    assert (head.status_code, head.reason) == (status, b"Words")
    # h11 strips nothing but what RFC 9112 strips, so the values compare exactly.
    assert [(name, value) for name, value in head.headers.raw_items() if name.startswith(b"X-")] == fields
    assert got == (b"" if no_body else body if declared is None else body[:declared])
    assert again == made.keep_alive
