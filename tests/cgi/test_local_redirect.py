"""The request that a program's local redirect stands for."""

from __future__ import annotations

from poolsrv_cgi.local_redirect import redirected
from poolsrv_http import RequestHead, RequestParser


def parse(data: bytes) -> RequestHead:
    request = RequestParser().feed(data)
    assert request is not None
    return request


def test_local_redirect() -> None:
    """RFC 3875 section 6.2.2: the server answers as if the client had asked for that URL."""
    request = parse(
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Type: x/y\r\nX: z\r\nExpect: 100-continue\r\n\r\n"
    )
    new = redirected(request, "/b/c?d")
    assert (new.method, new.path, new.query, new.target) == ("GET", "/b/c", "d", "/b/c?d")
    assert not new.has_body
    assert not new.expect_continue
    assert set(new.headers) == {b"host", b"x", b"expect"}
    assert redirected(parse(b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n"), "/").method == "HEAD"
