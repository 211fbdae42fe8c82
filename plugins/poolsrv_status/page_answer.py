"""The answer to a request for the page: made once, before the fork, and kept by browsers while it is the same."""

from __future__ import annotations

import hashlib
from typing import Final

from poolsrv_http import Request, Response

from .page import CONTENT_SECURITY_POLICY, page

__all__ = ["PageAnswer"]


class PageAnswer:
    """The page with its headers."""

    def __init__(self) -> None:
        self._content: Final = page()
        self._etag: Final = f'"{hashlib.sha256(self._content).hexdigest()[:32]}"'
        self._headers: Final = {
            "ETag": self._etag,
            "Cache-Control": "no-cache",  # kept, and asked for again
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        }

    def answer(self, request: Request, response: Response) -> None:
        """Send it, unless the client has it."""
        known = {tag.strip().removeprefix("W/") for tag in (request.header("if-none-match") or "").split(",")}
        if known & {self._etag, "*"}:
            response.respond(304, b"", self._headers)
        else:
            response.respond(200, self._content, {"Content-Type": "text/html; charset=utf-8", **self._headers})
