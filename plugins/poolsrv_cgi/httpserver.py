"""HTTP/1.1 on a connection: one request after another, each answered by an `Exchange`.

A connection is in one of three phases: waiting for a request head (`HttpConnection.read_head`), in an exchange, or
throwing away the rest of a body that nobody wanted. Bytes that arrive in an exchange and are not of its body stay in
the connection's buffer: pipelined requests wait there, and the engine stops reading when it is full.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from poolsrv_http import (
    SINGLE_FIELDS,
    Entry,
    Forwarding,
    Origin,
    RequestError,
    RequestLimits,
    RequestParser,
    combined,
    endpoints_of,
    error_response,
    json_line,
    mask_address,
)
from poolsrv_http import RequestHead as Request

from poolsrv import Connection, Worker, open_for_appending

from .exchange import Exchange
from .options import Options
from .scripts import ScriptPaths
from .site import Site

__all__ = ["HttpServer"]

MOST_OFTEN = 0.05  # seconds between two looks at a deadline
REQUESTS_PER_TURN = 4  # served one after the other while the worker's other connections wait for their turn
DRAIN_WAIT = 2.0  # seconds that a client gets for a request, once the worker is to end


class HttpServer:
    """One per listener."""

    def __init__(self, site: Site) -> None:
        options = site.options
        self.site = site
        self.options: Options = options
        self.forwarding = Forwarding(options)
        self.limits = RequestLimits(
            max_head=options.max_header_size,
            max_target=options.max_target_size,
            max_fields=options.max_header_fields,
            single=SINGLE_FIELDS | self.forwarding.single,
        )
        self.paths = ScriptPaths(
            root=options.root if options.root is not None else "/nonexistent",
            prefix=options.prefix,
            index=options.index,
            extensions=options.extensions,
            interpreters=options.interpreters,
            aliases=options.aliases,
            nph=options.nph,
            warm=options.warm,
        )
        self.document_root = os.fsdecode(self.paths.root)
        self._format: Callable[[Entry], str] = combined if options.access_log_format == "combined" else json_line
        self._log_file: int | None = None
        timeouts = (options.header_timeout, options.keepalive_timeout, DRAIN_WAIT)
        self.look_after = min(seconds for seconds in timeouts if seconds)

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection.

        :raises OSError: the access log can't be opened.
        """
        if self.options.access_log is not None:
            self._log_file = _open_log(self.options.access_log)
            worker.on_reopen_logs(self._reopen_log)

    def _reopen_log(self) -> None:
        """The access log has been renamed. Where it can't be opened anew the old file goes on."""
        assert self.options.access_log is not None
        assert self._log_file is not None
        try:
            fd = _open_log(self.options.access_log)
        except OSError as error:
            self.site.log(f"can't reopen the access log: {error.strerror}; going on with the old file")
            return
        os.close(self._log_file)
        self._log_file = fd

    def on_connection_init(self, conn: Connection) -> None:
        """A new client: it has `header_timeout` for its first request."""
        conn.state = HttpConnection(self, conn)

    def on_readable(self, conn: Connection) -> None:
        """More of a head, of a body, or of what comes after it."""
        conn.state.on_readable()

    def on_writable(self, conn: Connection) -> None:
        """The client has caught up."""
        conn.state.on_writable()

    def on_connection_close(self, conn: Connection) -> None:
        """The client is gone, or the connection has done its work."""
        conn.state.gone()

    def on_drain(self, conn: Connection) -> None:
        """No further request on this connection; one that is being served, or on its way, may finish."""
        conn.state.drain()

    def write_log(self, entry: Entry) -> None:
        """A line in the access log, where there is one."""
        if self._log_file is None:
            return
        try:
            os.write(self._log_file, self._format(entry).encode())
        except OSError as error:
            self.site.log_once("access_log", f"can't write the access log: {error.strerror}")

    @property
    def logs(self) -> bool:
        """Whether there is an access log."""
        return self._log_file is not None

    def log_address(self, origin: Origin) -> str:
        """The client's address as the access log has it."""
        address = origin.endpoints.remote_address
        return mask_address(address) if self.options.mask_addresses else address


class HttpConnection:
    """What `conn.state` is: one client's connection and where it is in its requests."""

    __slots__ = (
        "_due", "_idle", "_parser", "_reads", "_timer_set", "_turn_due", "_unwanted", "conn",
        "exchange", "head_began", "origin", "peer", "server",
    )  # fmt: skip

    def __init__(self, server: HttpServer, conn: Connection) -> None:
        self.server = server
        self.conn = conn
        self.peer = self.origin = Origin(endpoints=endpoints_of(conn))  # of the connection; of the current request
        self.exchange: Exchange | None = None
        self.head_began = 0.0  # when the first byte of the current request came, monotonic
        self._parser = RequestParser(server.limits)
        self._unwanted = 0  # bytes of a body to throw away
        self._idle = False  # between two requests
        self._due = 0.0  # when the wait for a head ends, monotonic; 0: nobody waits
        self._timer_set = False
        self._reads = False  # `read_head` is being called
        self._turn_due = False  # and will be called in the next turn
        self._wait(server.options.header_timeout)

    def on_readable(self) -> None:
        """Bytes, or the end of the stream."""
        if self.exchange is not None:
            self.exchange.on_input()
        elif not self._turn_due:
            self.read_head()

    def on_writable(self) -> None:
        """The client has caught up."""
        if self.exchange is not None:
            self.exchange.on_writable()
        elif not self._turn_due:
            self.read_head()

    def read_head(self) -> None:
        """Serve requests whose heads are here, until one is being served or no whole head is left: so many, and the
        rest in the next turn. A client that does not take its answers has to wait with further requests."""
        self._reads = True
        served = 0
        while self.exchange is None and served < REQUESTS_PER_TURN and not self.conn.congested:
            data = self.conn.recv()
            if not data:
                break
            served += self._take(data)
        self._reads = False
        if served == REQUESTS_PER_TURN:
            self._go_on_later()

    def _take(self, data: bytes) -> bool:
        """Bytes that are of no request that is being served; True where a request is whole by them."""
        if self._unwanted:
            data = self._throw_away(data)
            if not data:
                return False
        if not self.head_began:
            self.head_began = time.monotonic()
            self._idle = False
            self._wait(self.server.options.header_timeout)
        try:
            request = self._parser.feed(data)
            if request is not None and self.server.forwarding.names:
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
        """Once others have had their turn: with what is in the buffer, also after the end of the stream."""
        if not self._reads and not self._turn_due and self.exchange is None and self.conn.peek():
            self._turn_due = True
            self.conn.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._turn_due = False
        if self.exchange is None:
            self.read_head()

    def _identify(self, request: Request) -> Request:
        """Learn whose request it is, where the peer is a proxy that is believed.

        :raises RequestError: what it says is malformed.
        """
        forwarding, conn = self.server.forwarding, self.conn
        if conn.trusts(conn.peer[0]):
            request, self.origin = forwarding.read(request, self.peer.endpoints, conn.trusts)
            return request
        told = forwarding.without(request)
        if told is not request:
            self.server.site.log_once(
                "trusted_proxies",
                f"{conn.peer[0]} is none of trusted_proxies: fields that only these may set are dropped",
            )
        return told

    def _begin(self, request: Request) -> None:
        self._due = 0.0
        self.exchange = Exchange(self, request)
        self.exchange.begin()

    def finished(self, unread: int | None, keep_alive: bool) -> None:
        """The exchange is over; its response has been sent, or is on its way.

        :param unread: bytes of its request's body that nobody has taken; None where nobody knows.
        :param keep_alive: whether there can be another request. There can't before all of the body is here: a client
            that has its answer may send the rest or not.
        """
        self.exchange = None
        self.origin = self.peer
        conn = self.conn
        if not keep_alive or unread is None or (unread and unread > len(conn.peek())):
            conn.close("response sent")
            return
        self._unwanted = unread
        self.head_began = 0.0
        self._idle = True
        # A client that was told that it may go on does so, whatever has happened to the worker meanwhile.
        self._wait(DRAIN_WAIT if conn.draining else self.server.options.keepalive_timeout)
        self._go_on_later()  # with a request that waits in the buffer

    def can_go_on(self) -> bool:
        """Whether the server would like another request."""
        return bool(self.server.options.keepalive_timeout) and not self.conn.draining

    def drain(self) -> None:
        """The worker is to end."""
        # An idle client may be sending its next request this very moment: closed now, that one would be lost.
        if self.exchange is None and (not self._due or self._due > time.monotonic() + DRAIN_WAIT):
            self._wait(DRAIN_WAIT)

    def gone(self) -> None:
        """The connection is closed."""
        self._due = 0.0
        if self.exchange is not None:
            self.exchange.abandon()
            self.exchange = None

    def _throw_away(self, data: bytes) -> bytes:
        """What of the bytes is not of the unwanted body."""
        thrown = min(self._unwanted, len(data))
        self._unwanted -= thrown
        return data[thrown:]

    def _refuse(self, error: RequestError) -> None:
        """A head that can't be served: answer, log, close."""
        answer = error_response(error.status)
        self.conn.log.info("%s", error)
        self.conn.send(answer)
        self.conn.close(f"refused {error.status}")
        if self.server.logs:
            passed = time.monotonic() - self.head_began
            self.server.write_log(
                Entry(
                    address=self.server.log_address(self.origin),
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
        """Something has to happen within so many seconds; 0 is for ever.

        One timer serves all the waits of a connection, which come and go with each request: it looks at the deadline
        as often as the shortest of the timeouts is long.
        """
        if not seconds:
            self._due = 0.0
            return
        self._due = time.monotonic() + seconds
        if not self._timer_set:
            self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        self._timer_set = True
        self.conn.call_later(max(min(seconds, self.server.look_after), MOST_OFTEN), self._on_timer)

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


def _open_log(file: Path) -> int:
    """For appending; without waiting, should it be a pipe that nobody empties.

    :raises OSError: it can't be opened.
    """
    try:
        return open_for_appending(str(file), 0o640)
    except OSError as error:
        standard = {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(file))
        if error.errno != errno.ENXIO or standard is None:
            raise
        return os.dup(standard)  # a socket, as systemd has it: no such thing can be opened
