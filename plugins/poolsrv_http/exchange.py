"""The course of an exchange, from the head of its request until the connection goes on to the next one.

    begin ── the head of the request is here; the handler is called
      │ (the body comes; see `body`)
    answer ─ by `respond` or `error` at once, or by `start`, `send` and `end`
      │
    end ──── the client has, or will have, all that it gets
      │ (a stream that still takes in the request's body: let it)
    leave ── the connection goes on to the next request, or closes

Nothing waits for what it need not wait for: a response may go out while its request is still coming in. Each exchange
has one outcome, however it ends, and one line in the access log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from poolsrv import Connection

from .body import RequestBody
from .forwarding import Origin
from .outcome import Outcome
from .request_head import RequestError, RequestHead
from .shared import Shared

__all__ = ["ExchangeOwner", "HttpExchange"]

RETRY_AFTER = 5  # seconds that a client is asked to wait whose body there is no room for


class ExchangeOwner(Protocol):
    """The connection that an exchange is on."""

    conn: Connection
    shared: Shared

    def can_go_on(self) -> bool:
        """Whether the server would like another request."""

    def finished(self, unread: int | None, keep_alive: bool) -> None:
        """The exchange is over. See `HttpConnection.finished`."""


class HttpExchange:
    """The part of a `Response` that the connection and the body know.

    :ivar on_writable: called as `on_writable()` when `congested` has become False; None at first.
    :ivar on_cancel: called once as `on_cancel()` when the exchange has ended otherwise than by the handler: the client
        is gone, or the library has refused the request's body; None at first.
    :ivar outcome: what the access log will say of it.
    """

    __slots__ = (
        "_body", "_conn", "_head", "_holds", "_keep_alive", "_left", "_over", "_owner", "on_cancel", "on_writable",
        "outcome",
    )  # fmt: skip

    def __init__(self, owner: ExchangeOwner, head: RequestHead, origin: Origin, began: float) -> None:
        self._owner = owner
        self._conn = owner.conn
        self._head = head
        self._body: RequestBody | None = None
        self._over = False  # the client gets no more than it has got
        self._left = False  # the connection is not this exchange's any more
        self._keep_alive = False
        self._holds = 0
        self.on_writable: Callable[[], object] | None = None
        self.on_cancel: Callable[[], object] | None = None
        self.outcome = Outcome(owner.shared.access_log, head, origin, began, owner.shared.times)

    def _answer_instead(self, status: int, reason: str, retry_after: float | None = None) -> None:
        """In the handler's place: send an error, or reset the connection for this reason."""
        raise NotImplementedError

    # --- its beginning

    def _take_body(self) -> RequestBody | None:
        """Begin to take the body in; None where that has been refused."""
        self._conn.hold()  # until it is left
        try:
            body = RequestBody(self._conn, self._head, self._owner.shared, self._refuse_body, self._body_stalled)
        except RequestError as error:
            self._refuse_body(error)
            return None
        self._body = body
        return body

    def input_came(self) -> None:
        """Bytes have come, or the end of the stream."""
        if self._body is not None:
            self._body.on_input()

    def caught_up(self) -> None:
        """The client has taken what was kept for it."""
        if self.on_writable is not None and not self._over:
            self.on_writable()

    def _refuse_body(self, error: RequestError | OSError) -> None:
        if isinstance(error, RequestError):
            self._conn.log.info("%s", error)
            status = error.status
        else:
            self._conn.log.error("can't keep a request's body: %s", error.strerror)
            status = 507
        self._answer_instead(status, "the request's body was refused", RETRY_AFTER if status == 503 else None)

    def _body_stalled(self) -> None:
        self._conn.log.info("no more of the request's body within body_timeout")
        if self._over:
            self._cancel()
            self._keep_alive = False  # the client has its response, and the reader will not get the rest
            self._leave()
        else:
            self._answer_instead(408, "body_timeout")

    # --- its end

    def _may_go_on(self) -> bool:
        return self._head.keep_alive and self._owner.can_go_on()

    def _end(self, keep_alive: bool) -> None:
        self._over = True
        self._keep_alive = keep_alive
        if self._body is None or self._body.is_idle or not self._body.when_fed(self._leave):
            self._leave()

    def _leave(self) -> None:
        if self._left:
            return
        self._left = True
        unread: int | None = 0
        if self._body is not None and not self._body.is_idle:
            self._body.stop()
            unread = self._body.unread
        self.outcome.ended_at = time.monotonic()
        if not self._holds:
            self._finish()
        self._owner.finished(unread, self._keep_alive)
        self._conn.release()

    def _finish(self) -> None:
        """Log, and let go of what refers back here: a circle would have to wait for the garbage collector."""
        if self._holds or not self._left:
            return
        self.outcome.tell()
        if self._body is not None and not self._body.is_idle:
            self._body.is_over()
        self._body = self.on_writable = self.on_cancel = None

    def abandon(self) -> None:
        """The connection is gone."""
        self._over = self._left = True
        self.outcome.ended_at = time.monotonic()
        if self._body is not None:
            self._body.stop()
        self._cancel()
        self._finish()

    def _cancel(self) -> None:
        on_cancel, self.on_cancel = self.on_cancel, None
        if on_cancel is not None:
            on_cancel()

    # --- work that outlasts it

    def hold(self) -> None:
        """Work for this request goes on, whatever becomes of its connection.

        The line in the access log, and what is kept of the request's body, wait until `release` was called as often.
        """
        self._holds += 1

    def release(self) -> None:
        """The work is done; see `hold`."""
        self._holds -= 1
        if self._left:
            self._finish()
