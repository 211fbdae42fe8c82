"""Short responses of the server itself."""

from __future__ import annotations

import pytest
from poolsrv_http.error_page import error_response, prefers_html

from tests.helpers.http import read_response as read

DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"


class TestErrorPage:
    @pytest.mark.parametrize(
        ("accept", "html"),
        [
            (b"", False),
            (b"*/*", False),
            (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
            (b"text/plain, text/html", True),
            (b"text/plain, text/html;q=0.9", False),
            (b"TEXT/HTML; q=0.1", True),
            (b"text/html;q=0", False),
            (b"text/html;level=1;q=0.0, */*", False),
            (b"text/html;q=what", False),
            (b"application/xhtml+xml", True),
            (b"\xff\x00;;;,,", False),
        ],
    )
    def test_accept(self, accept: bytes, html: bool) -> None:
        """RFC 9110 section 12.5.1: HTML for those who ask for it."""
        assert prefers_html(accept) is html

    @pytest.mark.parametrize("status", [400, 403, 404, 408, 411, 413, 414, 417, 431, 500, 501, 502, 503, 504, 505])
    @pytest.mark.parametrize("accept", [b"*/*", b"text/html"])
    def test_pages(self, status: int, accept: bytes) -> None:
        """RFC 9110 section 15: every status that the server gives, as a response that stands for itself."""
        head, body, again = read(error_response(status, accept=accept), closed=True)
        assert head.status_code == status
        assert str(status).encode() in body
        assert head.reason in body
        assert dict(head.headers)[b"content-type"].startswith(b"text/html" if accept == b"text/html" else b"text/plain")
        assert not again

    def test_retry_after(self) -> None:
        """RFC 9110 section 10.2.3: whole seconds."""
        head, _, again = read(error_response(503, retry_after=0.2, keep_alive=True), closed=False)
        assert dict(head.headers)[b"retry-after"] == b"1"
        assert again

    def test_redirect_and_options(self) -> None:
        """RFC 9110 sections 15.4.2 and 9.3.7."""
        head, _, _ = read(error_response(301, location="/a/?b", keep_alive=True), closed=False)
        assert dict(head.headers)[b"location"] == b"/a/?b"
        head, body, _ = read(error_response(204, keep_alive=True), "OPTIONS", closed=False)
        assert (head.status_code, body) == (204, b"")
        assert b"content-type" not in dict(head.headers)

    def test_head(self) -> None:
        """RFC 9110 section 9.3.2: the same fields, no body."""
        full, without = error_response(404, date=DATE), error_response(404, date=DATE, method="HEAD")
        assert full.startswith(without)
        assert without.endswith(b"\r\n\r\n")
