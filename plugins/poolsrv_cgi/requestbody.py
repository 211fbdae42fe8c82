"""A request's body on its way from the connection to a program's standard input.

A body with a Content-Length is moved while it comes: what is in the connection's buffer already goes at once, the rest
is relayed, in the kernel where that is possible. A chunked body is collected until its end (see `spool`), since CGI
has CONTENT_LENGTH or no body. What no program takes stays in the connection, and `unread` says how much that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolsrv_http import CONTINUE, ChunkedDecoder, Spool, Watch, body_decoder
from poolsrv_http import RequestHead as Request

from poolsrv import PIPE, Connection, Stream

if TYPE_CHECKING:
    from .site import Site

__all__ = ["RequestBody"]

LINES_PER_TURN = 256  # of a chunked body, two to a chunk: a chunk may be of one byte, and others wait for their turn

# Of a body with a Content-Length, what has to be here before a program starts.
LEAST_FIRST = 16384  # bytes, where spool_memory is less
READ_AHEAD = 262144  # bytes, where it is more: the engine keeps no more of what has come
FAST_FIRST = 65536  # bytes, of a client that has sent them
FAST_TIME = 8.0  # within so many seconds

# An answer that is there before the whole body: what comes at once is waited for, so that the connection can go on.
REST_LIMIT = 1 << 20  # bytes that are waited for
REST_STILL = 0.25  # seconds without any
REST_TIME = 2.0  # seconds
REST_LOOK = 0.02  # seconds from one look to the next


class RequestBody:
    """The body of one request.

    :param stalled: called when no more of it has come for `body_timeout`.
    :raises RequestError: it is not acceptable: 411, 413.

    :ivar length: bytes that a program will find, decoded; None where the request has no body. Of a chunked body only
        right once it has been collected.
    :ivar continued: the client does not wait for "100 Continue" (any more).
    """

    __slots__ = (
        "_again", "_began", "_chunks", "_collected", "_conn", "_end", "_on_fed", "_rest_came", "_site", "_spool",
        "_stalled", "_stdin", "_turn_due", "_watch", "continued", "length",
    )  # fmt: skip

    def __init__(self, conn: Connection, request: Request, site: Site, stalled: Callable[[], object]) -> None:
        decoder = body_decoder(request, site.body_limits)
        self._conn = conn
        self._site = site
        self._stalled = stalled
        self._chunks = decoder if isinstance(decoder, ChunkedDecoder) else None
        self._spool: Spool | None = None
        self._stdin: Stream | None = None
        self._watch: Watch | None = None
        self._collected: Callable[[], object] | None = None
        self._again: Callable[[], object] | None = None
        self._turn_due = False  # `_again` will be called
        self._on_fed: Callable[[], object] | None = None
        self._rest_came: Callable[[], object] | None = None
        self.length = request.content_length
        # Where in the connection's input it ends, counted as bytes_in is.
        self._end = self._position() + (self.length or 0) if self.length or self._chunks else 0
        self._began = time.monotonic()
        self.continued = not request.expect_continue

    # --- collecting

    @property
    def is_chunked(self) -> bool:
        """Whether it has to be collected before a program can have it."""
        return self._chunks is not None

    def collect(self, collected: Callable[[], object], again: Callable[[], object]) -> None:
        """Call `collected()` once a program may start: of a chunked body all has come, of any other all or the first
        part. So a client that sends slowly, or not at all, holds no place that others wait for. `on_input` does the
        rest.

        :param again: called when `on_input` is to be called although nothing has come.
        :raises RequestError: it is malformed or too large.
        :raises OSError: it can't be kept.
        """
        self._collected = collected
        self._again = again
        if self._chunks is not None:
            self._spool = Spool(self._site.options.spool_memory, self._site.spooled)
        elif self._has_enough():
            self._is_collected()
            return
        self.ask()
        self._watch_it()
        self.on_input()

    def _has_enough(self) -> bool:
        """Whether the first part of a body with a Content-Length is here, in the connection's buffer."""
        length = self.length or 0
        here = self._conn.bytes_in - (self._end - length)
        if here >= FAST_FIRST and time.monotonic() - self._began < FAST_TIME:
            return True
        return here >= min(length, max(self._site.options.spool_memory, LEAST_FIRST), READ_AHEAD)

    def _is_collected(self) -> None:
        self._watch_no_more()
        collected, self._collected = self._collected, None
        if collected is not None:
            collected()

    def on_input(self) -> None:
        """Bytes have come. Raises as `collect` does."""
        if self._rest_came is not None:
            self._throw_away()
            if self.is_here:
                came, self._rest_came = self._rest_came, None
                came()
            return
        if self._collected is None or self._turn_due:
            return
        if self._chunks is not None and self._spool is not None:
            self._take_chunks(self._chunks, self._spool)
        elif self._has_enough():
            self._is_collected()
        elif self._conn.eof:
            self._conn.abort("client closed in the midst of a body")

    def _take_chunks(self, chunks: ChunkedDecoder, spool: Spool) -> None:
        conn = self._conn
        while not chunks.done and (data := conn.recv()):  # after the end of the stream nobody comes back for the rest
            spool.write(chunks.feed(data, LINES_PER_TURN))
            if chunks.surplus and not chunks.done:
                conn.unread(chunks.surplus)
                self._turn_due = True
                conn.call_soon(self._go_on)
                return
        if chunks.done:
            conn.unread(chunks.surplus)
            self._end = self._position()
            self.length = spool.size
            self._is_collected()
        elif conn.eof:
            conn.abort("client closed")

    def _go_on(self) -> None:
        self._turn_due = False
        if self._again is not None:
            self._again()

    def ask(self) -> None:
        """The body is wanted: say so to a client that waits for it (RFC 9110 section 10.1.1)."""
        if not self.continued:
            self.continued = True
            self._conn.send(CONTINUE)

    # --- feeding

    @property
    def is_here(self) -> bool:
        """Whether all of it has come."""
        if self._chunks is not None:
            return self._chunks.done
        return self._conn.bytes_in >= self._end

    def source(self) -> int | None:
        """What a program's standard input has to be: None, `PIPE`, or the descriptor of a file with the body in it."""
        if not self.length:
            return None
        if self._spool is not None and not self._spool.in_memory:
            return self._spool.rewound_descriptor()
        return PIPE

    def feed(self, stdin: Stream) -> None:
        """Give it to a program. One that does not read it is no error."""
        conn, length = self._conn, self.length or 0
        self._stdin = stdin
        stdin.on_close = self._on_stdin_closed
        if self._spool is not None:
            stdin.send(self._spool.contents())
            stdin.close()
        elif self.is_here:
            stdin.send(conn.recv(length))
            stdin.close()
        else:
            self.ask()
            self._watch_it()
            conn.relay_to(stdin, length, self._relayed)

    def _relayed(self, moved: int) -> None:
        stdin = self._stdin
        self._watch_no_more()
        if stdin is None:
            return
        if self._position() < self._end and self._conn.eof:
            # An end of file would tell the program that what it has got is all. It is ended with the connection.
            self._conn.abort("client closed in the midst of a body")
        else:
            stdin.close()

    def _on_stdin_closed(self, stdin: Stream, error: BaseException | None) -> None:
        if stdin is self._stdin:
            self._stdin = None
            if self._on_fed is not None:
                self._on_fed()

    @property
    def is_being_fed(self) -> bool:
        """Whether a program is still being given it."""
        return self._stdin is not None

    def when_fed(self, callback: Callable[[], object]) -> bool:
        """True: `callback()` comes when the program has it all, or wants no more. False: it is not being fed."""
        if self._stdin is None:
            return False
        self._on_fed = callback
        return True

    def stop(self) -> None:
        """The program gets no more of it. What it had not taken is in the connection."""
        self._watch_no_more()
        self._on_fed = None
        stdin, self._stdin = self._stdin, None
        if stdin is not None:
            stdin.abort()
        self.forget()

    def forget(self) -> None:
        """Give memory and file back; a program keeps what it has got."""
        if self._spool is not None:
            self._spool.close()

    def is_over(self) -> None:
        """No program has anything of it any more."""
        self._collected = self._again = None
        if self._spool is not None:
            self._spool.forget()

    # --- an answer that does not wait for it

    def await_rest(self, came: Callable[[], object]) -> bool:
        """There is an answer. False: all of the body is here, or nobody waits for it. True: `came()` is called once it
        is here, or does not come soon. What no program takes is thrown away meanwhile."""
        if not self._rest_may_come():
            return False
        self._rest_came = came
        self._look_for_rest(self._conn.bytes_in, 0.0, 0.0)
        return self._rest_came is not None

    def _rest_may_come(self) -> bool:
        unread = self.unread
        if unread is None or self.is_here or not self.continued or self._conn.eof:
            return False
        return unread <= REST_LIMIT or self._stdin is not None

    def _look_for_rest(self, seen: int, still: float, waited: float) -> None:
        came, received = self._rest_came, self._conn.bytes_in
        if came is None:
            return
        if received > seen:
            still = 0.0
        self._throw_away()
        if not self._rest_may_come() or still >= REST_STILL or waited >= REST_TIME:
            self._rest_came = None
            if waited:
                came()
        else:
            self._conn.call_later(
                REST_LOOK, lambda: self._look_for_rest(received, still + REST_LOOK, waited + REST_LOOK)
            )

    def _throw_away(self) -> None:
        while self._stdin is None and (unread := self.unread) and self._conn.recv(unread):
            pass

    @property
    def awaits_rest(self) -> bool:
        """Whether `await_rest` goes on."""
        return self._rest_came is not None

    @property
    def unread(self) -> int | None:
        """Bytes of it that have not been taken from the connection; None where nobody knows (chunks to come)."""
        if self._chunks is not None and not self._chunks.done:
            return None
        return max(self._end - self._position(), 0) if self._end else 0

    def _position(self) -> int:
        """How much of the connection's input has been taken."""
        return self._conn.bytes_in - len(self._conn.peek())

    # --- patience

    def _watch_it(self) -> None:
        self._watch = Watch(self._progress, self._stalled)
        self._site.stalled_bodies.add(self._watch)

    def _watch_no_more(self) -> None:
        if self._watch is not None:
            self._site.stalled_bodies.remove(self._watch)
            self._watch = None

    def _progress(self) -> int | None:
        """What must change within `body_timeout`. None where it is the program that is slow."""
        if self._stdin is None:
            return self._conn.bytes_in
        if self._conn.relay_waits:
            return None
        # A program waits for it: a byte now and then is not enough.
        options = self._site.options
        return self._conn.bytes_in // max(int(options.min_body_rate * options.body_timeout), 1)
