"""HTTP/1.1 on a connection: one request after another, each answered by a `Response`.

A connection is in one of three phases: waiting for a request head (`HttpConnection.read_head`), in an exchange, or
throwing away the rest of a body that had no reader. Bytes that arrive during an exchange and do not belong to its body
stay in the connection's buffer. Pipelined requests wait there, and the engine stops reading when it is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from poolsrv import Connection

from .access_log import Entry
from .endpoints import endpoints_of
from .error_page import error_response
from .forwarding import Origin
from .head import RequestParser
from .request import Request
from .request_head import RequestError, RequestHead
from .response import Response
from .shared import DRAIN_WAIT, Shared

__all__ = ["Handler", "HttpConnection"]

MOST_OFTEN = 0.05  # seconds between two looks at a deadline
REQUESTS_PER_TURN = 4  # served one after the other while the worker's other connections wait for their turn

Handler = Callable[[Request, Response], object]


class HttpConnection:
    """One client's connection, and where it is in its requests. It is what `conn.state` is."""

    __slots__ = (
        "_due", "_exchange", "_handler", "_head_began", "_idle", "_origin", "_parser", "_peer", "_reads", "_timer_set",
        "_turn_due", "_unwanted", "conn", "shared",
    )  # fmt: skip

    def __init__(self, shared: Shared, handler: Handler, conn: Connection) -> None:
        self.shared = shared
        self.conn = conn
        self._handler = handler
        self._peer = self._origin = Origin(endpoints=endpoints_of(conn))  # of the connection; of the current request
        self._exchange: Response | None = None
        self._head_began = 0.0  # when the first byte of the current request came, monotonic
        self._parser = RequestParser(shared.limits)
        self._unwanted = 0  # bytes of a body to throw away
        self._idle = False  # between two requests
        self._due = 0.0  # when the wait for a head ends, monotonic; 0: there is none
        self._timer_set = False
        self._reads = False  # `read_head` is being called
        self._turn_due = False  # and will be called in the next iteration
        self._wait(shared.options.header_timeout)

    def on_readable(self) -> None:
        """Take bytes, or the end of the stream."""
        if self._exchange is not None:
            self._exchange.input_came()
        elif not self._turn_due:
            self.read_head()

    def on_writable(self) -> None:
        """Go on: the client has taken what was kept for it."""
        if self._exchange is not None:
            self._exchange.caught_up()
        elif not self._turn_due:
            self.read_head()

    def read_head(self) -> None:
        """Serve the requests whose heads are here: so many now, and the rest in the next iteration.

        A client that does not take its answers has to wait with further requests.
        """
        self._reads = True
        served = 0
        while self._exchange is None and served < REQUESTS_PER_TURN and not self.conn.congested:
            data = self.conn.recv()
            if not data:
                break
            served += self._take(data)
        self._reads = False
        if served == REQUESTS_PER_TURN:
            self._go_on_later()

    def _take(self, data: bytes) -> bool:
        """Take bytes that belong to no request yet.

        :returns: True where they complete the head of a request.
        """
        if self._unwanted:
            data = self._throw_away(data)
            if not data:
                return False
        if not self._head_began:
            self._head_began = time.monotonic()
            self._idle = False
            self._wait(self.shared.options.header_timeout)
        try:
            request = self._parser.feed(data)
            if request is not None and self.shared.forwarding.names:
                request = self._identify(request)
        except RequestError as error:
            self._refuse(error)
            return False
        if request is None:
            return False
        if self._parser.surplus:
            self.conn.unread(self._parser.surplus)
        self._begin(request)
        return True

    def _go_on_later(self) -> None:
        """Read what is in the buffer, also after the end of the stream, once other connections have had their turn."""
        if not self._reads and not self._turn_due and self._exchange is None and self.conn.peek():
            self._turn_due = True
            self.conn.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._turn_due = False
        if self._exchange is None:
            self.read_head()

    def _identify(self, request: RequestHead) -> RequestHead:
        """Find out where a request comes from. Only a trusted proxy is believed.

        :raises RequestError: what the proxy says is malformed.
        """
        forwarding, conn = self.shared.forwarding, self.conn
        if conn.trusts(conn.peer[0]):
            request, self._origin = forwarding.read(request, self._peer.endpoints, conn.trusts)
            return request
        told = forwarding.without(request)
        if told is not request:
            self.shared.warn_of_peer(conn.peer[0])
        return told

    def _begin(self, request: RequestHead) -> None:
        self._due = 0.0
        self._exchange = response = Response(self, request, self._origin, self._head_began)
        response.begin(self._handler, self._origin)

    def finished(self, unread: int | None, keep_alive: bool) -> None:
        """Go on to the next request, or close: the exchange is over, and its response sent or on its way.

        :param unread: bytes of the request's body that no reader has taken; None where that is not known.
        :param keep_alive: whether there can be another request. There can be none before the whole body is here: a
            client that has its answer may send the rest or not.
        """
        self._exchange = None
        self._origin = self._peer
        conn = self.conn
        if not keep_alive or unread is None or (unread and unread > len(conn.peek())):
            conn.close("response sent")
            return
        self._unwanted = unread
        self._head_began = 0.0
        self._idle = True
        # A client that was told to go on does so, even if the worker has begun to drain.
        self._wait(DRAIN_WAIT if conn.draining else self.shared.options.keepalive_timeout)
        self._go_on_later()  # where the next request is in the buffer

    def can_go_on(self) -> bool:
        """Whether another request on this connection is welcome."""
        return bool(self.shared.options.keepalive_timeout) and not self.conn.draining

    def drain(self) -> None:
        """Close soon: the worker is draining."""
        # An idle client may be sending its next request at this moment, which would be lost.
        if self._exchange is None and (not self._due or self._due > time.monotonic() + DRAIN_WAIT):
            self._wait(DRAIN_WAIT)

    def gone(self) -> None:
        """End what is under way: the connection is closed."""
        self._due = 0.0
        if self._exchange is not None:
            self._exchange.abandon()
            self._exchange = None

    def _throw_away(self, data: bytes) -> bytes:
        """Drop the bytes that belong to the unwanted body; the others are returned."""
        thrown = min(self._unwanted, len(data))
        self._unwanted -= thrown
        return data[thrown:]

    def _refuse(self, error: RequestError) -> None:
        """Answer a head that can't be served, log it, and close."""
        answer = error_response(error.status)
        self.conn.log.info("%s", error)
        self.conn.send(answer)
        self.conn.close(f"refused {error.status}")
        access_log = self.shared.access_log
        passed = time.monotonic() - self._head_began
        self.shared.times.response(error.status, passed, passed)
        if access_log.is_open:
            access_log.write(
                Entry(
                    address=access_log.address_of(self._origin),
                    time=time.time() - passed,
                    line=error.request_line,
                    status=error.status,
                    body_bytes=len(answer.partition(b"\r\n\r\n")[2]),
                    first_byte=passed,
                    total=passed,
                )
            )

    # --- waiting for a head

    def _wait(self, seconds: float) -> None:
        """Set the deadline for what the client has to do next; 0 seconds: none.

        One timer serves all waits of a connection, which come and go with each request. It looks at the deadline as
        often as the shortest timeout is long.
        """
        if not seconds:
            self._due = 0.0
            return
        self._due = time.monotonic() + seconds
        if not self._timer_set:
            self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        self._timer_set = True
        self.conn.call_later(max(min(seconds, self.shared.look_after), MOST_OFTEN), self._on_timer)

    def _on_timer(self) -> None:
        self._timer_set = False
        if not self._due:
            return
        left = self._due - time.monotonic()
        if left > 0:
            self._set_timer(left)
        elif self._parser.started:
            self._refuse(RequestError(408, "no whole request head within header_timeout"))
        else:
            self.conn.close("keepalive_timeout" if self._idle else "header_timeout")
