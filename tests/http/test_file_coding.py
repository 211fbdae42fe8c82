"""The choice of a content coding (RFC 9110 section 12.5.3), and media types by suffix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from poolsrv_http.files.coding import chosen_coding
from poolsrv_http.files.media_types import MediaTypes

BOTH = ("br", "gzip")


@pytest.mark.parametrize(
    ("accept", "offered", "expected"),
    [
        (None, BOTH, ""),
        ("", BOTH, ""),
        ("gzip", BOTH, "gzip"),
        ("gzip, deflate, br", BOTH, "br"),
        ("gzip, deflate, br", ("gzip",), "gzip"),
        ("gzip, br", (), ""),
        ("GZIP", BOTH, "gzip"),
        ("x-gzip", BOTH, "gzip"),
        ("br;q=0.5, gzip", BOTH, "gzip"),
        ("br;q=0.5, gzip;q=0.5", BOTH, "br"),
        ("br;q=0, gzip;q=0", BOTH, ""),
        ("br; q=0.0 , gzip;q=0.001", BOTH, "gzip"),
        ("*", BOTH, "br"),
        ("*;q=0", BOTH, ""),
        ("br;q=0, *", BOTH, "gzip"),
        ("gzip;q=0.5, identity", BOTH, ""),
        ("gzip;q=0.5, identity;q=0.5", BOTH, "gzip"),
        ("identity;q=0", BOTH, ""),
        ("identity;q=0, *;q=0.1", BOTH, "br"),
        ("deflate", BOTH, ""),
        ("gzip;q=nonsense", BOTH, ""),
        ("gzip;q=nan, br;q=2", BOTH, ""),
        ("gzip;level=9;q=0.2", BOTH, "gzip"),
        (",;,gzip;", BOTH, "gzip"),
        ("gzipped", BOTH, ""),
    ],
)
def test_coding(accept: str | None, offered: tuple[str, ...], expected: str) -> None:
    assert chosen_coding(None if accept is None else accept.encode(), offered) == expected


@given(st.binary(max_size=40))
def test_any_bytes(accept: bytes) -> None:
    assert chosen_coding(accept, BOTH) in ("", *BOTH)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"/a/index.html", b"text/html; charset=utf-8"),
        (b"INDEX.HTML", b"text/html; charset=utf-8"),
        (b"app.js", b"text/javascript; charset=utf-8"),
        (b"app.mjs", b"text/javascript; charset=utf-8"),
        (b"app.css", b"text/css; charset=utf-8"),
        (b"data.json", b"application/json"),
        (b"app.wasm", b"application/wasm"),
        (b"font.woff2", b"font/woff2"),
        (b"picture.webp", b"image/webp"),
        (b"picture.svg", b"image/svg+xml"),
        (b"archive.tar.gz", b"application/gzip"),
        (b"track.gpx", b"application/gpx+xml"),
        (b"README", b"application/octet-stream"),
        (b"folder.html/README", b"application/octet-stream"),
        (b"odd.\xff", b"application/octet-stream"),
        (b"dot.", b"application/octet-stream"),
    ],
)
def test_media_types(name: bytes, expected: bytes) -> None:
    """They do not depend on the machine."""
    assert MediaTypes({".gpx": "application/gpx+xml"}, "application/octet-stream", "utf-8").of(name) == expected


def test_charset() -> None:
    kinds = MediaTypes({".a": "text/a; charset=latin1"}, "text/plain", "")
    assert (kinds.of(b"x.html"), kinds.of(b"x")) == (b"text/html", b"text/plain")
    kinds = MediaTypes({".a": "text/a; charset=latin1"}, "text/plain", "utf-8")
    assert [kinds.of(name) for name in (b"x.a", b"x")] == [b"text/a; charset=latin1", b"text/plain; charset=utf-8"]
