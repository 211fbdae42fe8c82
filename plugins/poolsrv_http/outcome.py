"""What becomes of one request, for the metrics and the access log: one line, whatever happens."""

from __future__ import annotations

import time

from .access_log import Entry
from .forwarding import Origin
from .log_file import AccessLog
from .request_head import RequestHead
from .times import ResponseTimes

__all__ = ["Outcome"]


class Outcome:
    """The outcome of one exchange. A handler that has run something for the request may say so here.

    :ivar began: when the request's first byte came, monotonic.
    :ivar ended_at: when the client had all that it got, monotonic; 0 until then.
    :ivar status: that the client got; 0 as long as it got none.
    :ivar first_byte: seconds from the request's first byte to the response's; None as long as there is none.
    :ivar body_bytes: bytes of the response's body, without framing.
    :ivar program: the name of what has run; "" for nothing.
    :ivar queued: seconds that the request has waited for it; None for nothing.
    :ivar returncode: its exit status, or minus the signal's number; None where unknown.
    :ivar cpu: seconds of CPU time that it used; None where unknown.
    :ivar peak_memory: bytes of memory that it used; None where unknown.
    """

    __slots__ = (
        "_head", "_log", "_origin", "_times", "_told", "began", "body_bytes", "cpu", "ended_at", "first_byte",
        "peak_memory", "program", "queued", "returncode", "status",
    )  # fmt: skip

    def __init__(self, log: AccessLog, head: RequestHead, origin: Origin, began: float, times: ResponseTimes) -> None:
        self._log = log
        self._times = times
        self._head = head
        self._origin = origin
        self._told = False
        self.began = began
        self.ended_at = 0.0
        self.status = 0
        self.first_byte: float | None = None
        self.body_bytes = 0
        self.program = ""
        self.queued: float | None = None
        self.returncode: int | None = None
        self.cpu: float | None = None
        self.peak_memory: int | None = None

    def answered(self, status: int, body_bytes: int = 0) -> None:
        """The response's first byte goes out now."""
        self.status = status
        self.body_bytes = body_bytes
        self.first_byte = time.monotonic() - self.began

    def tell(self) -> None:
        """Count the response, and write the line where there is an access log; once."""
        if self._told:
            return
        self._told = True
        now = time.monotonic()
        total = (self.ended_at or now) - self.began
        self._times.response(self.status, self.first_byte, total)
        if not self._log.is_open:
            return
        headers = self._head.headers
        self._log.write(
            Entry(
                address=self._log.address_of(self._origin),
                time=time.time() - (now - self.began),
                line=self._head.line,
                status=self.status,
                body_bytes=self.body_bytes,
                referer=headers.get(b"referer", b"").decode("utf-8", "surrogateescape"),
                agent=headers.get(b"user-agent", b"").decode("utf-8", "surrogateescape"),
                user=self._origin.user,
                program=self.program,
                queued=self.queued,
                first_byte=self.first_byte,
                total=total,
                returncode=self.returncode,
                cpu=self.cpu,
                peak_memory=self.peak_memory,
            )
        )
