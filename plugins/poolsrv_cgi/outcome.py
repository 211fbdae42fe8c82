"""What has become of one request, for the access log: one line, whatever has happened."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from poolsrv_http import Entry

if TYPE_CHECKING:
    from poolsrv_http import Origin
    from poolsrv_http import RequestHead as Request

    from .httpserver import HttpServer
    from .programs.program import Program

__all__ = ["Outcome"]


class Outcome:
    """Of one exchange.

    :param began: when its first byte came, monotonic.
    :ivar ended_at: when the client had all that it got, monotonic; 0 until then.
    :ivar status: that the client got; 0 as long as it got none.
    :ivar queued: seconds waited for a place among the running programs.
    :ivar first_byte: seconds from the request's first byte to the response's; None as long as there is none.
    :ivar body_bytes: of the response.
    """

    __slots__ = ("_told", "began", "body_bytes", "ended_at", "first_byte", "queued", "status")

    def __init__(self, began: float) -> None:
        self.began = began
        self.ended_at = 0.0
        self.status = 0
        self.queued = 0.0
        self.first_byte: float | None = None
        self.body_bytes = 0
        self._told = False

    def answered(self, status: int, body_bytes: int = 0) -> None:
        """The response's first byte goes out now."""
        self.status = status
        self.body_bytes = body_bytes
        self.first_byte = time.monotonic() - self.began

    def tell(self, server: HttpServer, origin: Origin, request: Request, program: Program | None) -> None:
        """Write the line, once; where there is an access log."""
        if self._told:
            return
        self._told = True
        if not server.logs:
            return
        now = time.monotonic()
        server.write_log(
            Entry(
                address=server.log_address(origin),
                time=time.time() - (now - self.began),
                line=request.line,
                status=self.status,
                body_bytes=self.body_bytes,
                referer=request.headers.get(b"referer", b"").decode("utf-8", "surrogateescape"),
                agent=request.headers.get(b"user-agent", b"").decode("utf-8", "surrogateescape"),
                user=origin.user,
                program=program.name if program is not None else "",
                queued=self.queued if program is not None else None,
                first_byte=self.first_byte,
                total=(self.ended_at or now) - self.began,
                returncode=program.returncode if program is not None else None,
                cpu=program.cpu if program is not None else None,
                peak_memory=program.peak_memory if program is not None else None,
            )
        )
