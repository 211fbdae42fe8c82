"""A response as a handler gives it. `exchange` has the course of the exchange that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from poolsrv import Connection, Stream

from .error_page import error_page
from .exchange import ExchangeOwner, HttpExchange
from .forwarding import Origin
from .framing import FramedResponse, Framing, http_date
from .headers import Headers, ResponseHeader, made_header
from .request import Request
from .request_head import RequestHead

__all__ = ["Response"]

RELAY_FROM = 65536  # bytes still to come from which the kernel moves them


class Response(HttpExchange):
    """The response to one request.

    Once it has ended, which it may do at any time with its client, all that a handler still does to it has no effect.
    """

    __slots__ = ("_framed", "_taken_over")

    def __init__(self, owner: ExchangeOwner, head: RequestHead, origin: Origin, began: float) -> None:
        HttpExchange.__init__(self, owner, head, origin, began)
        self._framed: FramedResponse | None = None
        self._taken_over = False

    # --- its beginning

    def start(self, status: int, headers: Headers = (), *, length: int | None = None, first: bytes = b"") -> None:
        """Send the header; the body follows by `send`, then `end`.

        :param status: from 200 to 599.
        :param headers: names and values; not those of the framing, which the library makes.
        :param length: bytes of the body; None where that is not known yet.
        :param first: the first bytes of the body, to be sent with the header.
        :raises ValueError: the header can't be sent.
        :raises RuntimeError: it has been sent.
        """
        self.start_with(made_header(status, headers, length), first)

    def start_with(self, header: ResponseHeader, first: bytes = b"", *, whole: bool = False) -> None:
        """As `start`, with a header that is known to be right.

        :param whole: whether `first` is the whole body.
        :raises RuntimeError: a header has been sent.
        """
        if self._framed is not None or self._taken_over:
            self._must_not_have_started()
        body = self._body
        if self._over or body is None:
            return
        whole = whole or self._head.method == "HEAD"
        goes_on = body.is_idle or body.is_here or (body.is_being_taken and not whole)
        self._framed = framed = FramedResponse(
            header,
            method=self._head.method,
            version=self._head.version,
            keep_alive=goes_on and self._may_go_on(),
            date=http_date(),
        )
        if framed.framing is Framing.LENGTH:
            first = first[: framed.remaining]
        self.outcome.answered(header.status, len(first) if framed.framing is not Framing.NONE else 0)
        self._conn.send(framed.head + framed.encode(first))

    def await_body(self, begin: Callable[[], object]) -> bool:
        """Before `start`: whether to wait for the rest of the request's body, so that the connection can be kept.

        :param begin: called once the rest is here, or does not come soon: within two seconds.
        :returns: False where there is nothing to wait for; then `begin` is not called.
        """
        body = self._body
        return body is not None and not body.is_idle and self._may_go_on() and body.await_rest(begin)

    def respond(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Send a whole response, and end it.

        :raises ValueError: the header can't be sent.
        :raises RuntimeError: another one has been sent.
        """
        self._must_not_have_started()
        # The length of a 304 would be that of the 200 in its place (RFC 9110 section 8.6), which is not known.
        self._answer(made_header(status, headers, None if status == 304 else len(body)), body)

    def error(
        self,
        status: int,
        *,
        keep_alive: bool = True,
        location: str = "",
        retry_after: float | None = None,
        wait: bool = True,
        headers: Headers = (),
    ) -> None:
        """Send a short page that names the status, and end the response.

        The page is HTML or plain text, as the client prefers. What went wrong is for the log.

        :param status: 204 or 301, or from 400 to 599.
        :param keep_alive: False: close the connection.
        :param location: the Location field, percent-encoded.
        :param retry_after: seconds, for the Retry-After field.
        :param wait: whether to wait for the rest of the request's body, as `await_body` does.
        :param headers: further ones, such as the Allow of a 405.
        :raises ValueError: `location` is not percent-encoded, or a header can't be sent.
        :raises RuntimeError: a response has been sent.
        """
        self._must_not_have_started()
        header, body = error_page(status, self._head.headers.get(b"accept", b""), location, retry_after)
        if headers:
            further = made_header(status, headers, None).fields
            header = msgspec.structs.replace(header, fields=header.fields + further)
        self._answer(header, body, keep_alive=keep_alive, wait=wait)

    def _must_not_have_started(self) -> None:
        if self.started and not self._over:
            raise RuntimeError("the response has been started")

    def _answer(self, header: ResponseHeader, body: bytes, *, keep_alive: bool = True, wait: bool = True) -> None:
        if self._over:
            return
        self._over = True
        send = partial(self._send_whole, header, body, keep_alive)
        if self._body is not None:
            self._body.stop()
            if keep_alive and wait and self._may_go_on() and self._body.await_rest(send):
                return
        send()

    def _send_whole(self, header: ResponseHeader, body: bytes, keep_alive: bool) -> None:
        keep_alive = keep_alive and self._may_go_on() and (self._body is None or self._body.may_go_on)
        self._framed = framed = FramedResponse(
            header, method=self._head.method, version=self._head.version, keep_alive=keep_alive, date=http_date()
        )
        encoded = framed.encode(body)
        self.outcome.answered(header.status, len(encoded))
        self._conn.send(framed.head + encoded)
        self._end(keep_alive)

    # --- its body

    def send(self, data: bytes) -> None:
        """Send a piece of the body. All of it is taken at once; look at `congested` before sending more.

        What goes beyond the length that was given is cut off, and so is the body of a response that can't have one.

        :raises RuntimeError: `start` has not been called.
        """
        if self._over:
            return
        framed = self._started_framing()
        if framed.framing is Framing.LENGTH:
            data = data[: framed.remaining]
        self.outcome.body_bytes += len(data) if framed.framing is not Framing.NONE else 0
        self._conn.send(framed.encode(data))

    def relay_from(self, source: Stream, done: Callable[[], object]) -> bool:
        """Let the kernel move the body from a stream, until the stream's end or the body's length.

        :param done: called once nothing more is moved.
        :returns: False where the body has to pass through `send`, because it is sent in chunks or is short.
        """
        framed = self._framed
        if self._over or framed is None or framed.framing in (Framing.CHUNKED, Framing.NONE):
            return False
        length = framed.remaining if framed.framing is Framing.LENGTH else None
        if length is not None and length < RELAY_FROM:
            return False
        source.relay_to(self._conn, length, partial(self._relayed, framed, done))
        return True

    def _relayed(self, framed: FramedResponse, done: Callable[[], object], moved: int) -> None:
        framed.advance(moved)
        self.outcome.body_bytes += moved
        done()

    def send_file(self, fd: int, offset: int, count: int, done: Callable[[int], object]) -> bool:
        """Let the kernel move a piece of the body from a file, until so many bytes or the body's length.

        :param fd: as `Connection.send_file` takes it: it stays the handler's, to be closed in `done`.
        :param done: called once as `done(sent)`, with the number of bytes sent: fewer where the file is shorter, or
            can't be read, or the client is gone.
        :returns: False where there is nothing to send: the response has ended, or has no body. `done` is not called.
        :raises RuntimeError: `start` has not been called.
        """
        if self._over:
            return False
        framed = self._started_framing()
        if framed.framing is Framing.LENGTH:
            count = min(count, framed.remaining)
        if framed.framing is Framing.NONE or count <= 0:
            return False
        if framed.framing is Framing.CHUNKED:
            self._conn.send(framed.open_chunk(count))
        self._conn.send_file(fd, offset, count, partial(self._file_sent, framed, count, done))
        return True

    def _file_sent(self, framed: FramedResponse, count: int, done: Callable[[int], object], sent: int) -> None:
        framed.advance(sent)
        self.outcome.body_bytes += sent
        if sent < count and framed.framing is Framing.CHUNKED:
            self.abort("a file was cut short")  # the chunk can't be made whole
        done(sent)

    def take_over(self) -> Connection:
        """Leave the connection to the handler: the library writes nothing more to it. `end` is the handler's to call.

        :returns: the connection, which is closed after `end`.
        """
        self._taken_over = True
        self.outcome.answered(0)
        return self._conn

    @property
    def started(self) -> bool:
        """Whether a header has been sent, or the connection taken over."""
        return self._framed is not None or self._taken_over

    @property
    def ended(self) -> bool:
        """Whether the client gets no more than it has got."""
        return self._over

    @property
    def congested(self) -> bool:
        """Whether more than 256 KiB wait for the client, or nothing more will be sent to it.

        A loop that sends as long as there is room has to end where the client has reset the connection, too.
        """
        conn = self._conn
        return conn.congested or conn.reset or self._over

    @property
    def wants_body(self) -> bool:
        """False where more of the body would only be cut off."""
        return self._framed is not None and self._framed.wants_body

    # --- its end

    def end(self, complete: bool = True) -> None:
        """The body is whole.

        :param complete: False where it is not, and the client must not take it for whole.
        :raises RuntimeError: `start` has not been called.
        """
        if self._over:
            return
        if self._taken_over:
            if complete:
                self._end(False)
            else:
                self.abort("the response was cut short")
            return
        framed = self._framed or self._started_framing()
        last = framed.finish(complete)
        if last:
            self._conn.send(last)
        if not framed.intact:
            if self._body is not None:
                self._body.stop()
            if framed.framing is Framing.CLOSE:
                # Any other end of the connection would look like the end of the body.
                self.abort("the response was cut short")
                return
        self._end(framed.keep_alive)

    @property
    def intact(self) -> bool:
        """Whether the client can have got, or will get, the whole body."""
        return self._framed is None or self._framed.intact

    def abort(self, reason: str = "") -> None:
        """Reset the connection: the client can't take what it has got for a whole response."""
        self._over = True
        self._conn.abort(reason)

    def _started_framing(self) -> FramedResponse:
        if self._framed is None:
            raise RuntimeError("the response has not been started")
        return self._framed

    # --- what the connection calls

    def begin(self, handler: Callable[[Request, Response], object], origin: Origin) -> None:
        """The head is here."""
        body = self._take_body()
        if body is not None:
            handler(Request(self._conn, self._head, origin, body), self)

    def _answer_instead(self, status: int, reason: str, retry_after: float | None = None) -> None:
        """In the handler's place."""
        self._cancel()
        if self.started:
            self.abort(reason)
        else:
            self.error(status, keep_alive=False, retry_after=retry_after)
