"""The body of a request on its way from the connection to its reader.

There are three ways to have it, each begun by one call; without one the body stays where it is:

- `read`: piece by piece, as it comes. `pause` slows the client down.
- `collect`: as a whole, kept in memory or in a temporary file.
- `prepare`, then `relay_to`: moved to a stream, in the kernel where that is possible. This is for a program's standard
  input. Of a body with a Content-Length only the first part is waited for; a chunked body is collected, since programs
  have to know its length.

What no reader takes stays in the connection, and `unread` says how much that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from poolsrv import PIPE, Connection, Stream

from .decoders import BodyLimits, ChunkedDecoder, LengthDecoder, body_decoder
from .framing import CONTINUE
from .head import RequestError, RequestHead
from .rest import REST_LIMIT, Rest
from .shared import Shared
from .spool import Spool
from .stall import Watch

__all__ = ["RequestBody"]

LINES_PER_TURN = 256  # of a chunked body, two to a chunk: a chunk may be of one byte, and others wait for their turn

# Of a body with a Content-Length, what has to be here before it is ready.
LEAST_FIRST = 16384  # bytes, where spool_memory is less
READ_AHEAD = 262144  # bytes, where it is more: the engine keeps no more of what has come
FAST_FIRST = 65536  # bytes, of a client that has sent them
FAST_TIME = 8.0  # within so many seconds

Callback = Callable[[], object]


class RequestBody:
    """The body of one request, empty where it has none.

    A body that is too large, malformed or too slow is refused by the library; then its reader is not called again, and
    the response's `on_cancel` is.

    :ivar length: bytes, decoded; None where the request has no body. Of a chunked body only right once all has come.
    :ivar is_idle: the request has no body, and no reader has asked for it: nothing comes, and nothing is to be stopped.
    """

    __slots__ = (
        "_began",
        "_busy",
        "_conn",
        "_continued",
        "_decoder",
        "_done",
        "_end",
        "_limits",
        "_on_data",
        "_on_fed",
        "_paused",
        "_ready",
        "_refused",
        "_rest",
        "_shared",
        "_spool",
        "_stalled",
        "_target",
        "_turn_due",
        "_watch",
        "_when_fed",
        "is_idle",
        "length",
    )  # fmt: skip

    def __init__(
        self,
        conn: Connection,
        head: RequestHead,
        shared: Shared,
        refused: Callable[[RequestError | OSError], object],
        stalled: Callback,
    ) -> None:
        """
        :param refused: called when the body can't be taken in.
        :param stalled: called when no more of it has come for `body_timeout`.
        :raises RequestError: it is not acceptable: 411, 413.
        """
        self._decoder: LengthDecoder | ChunkedDecoder = body_decoder(head, shared.body_limits)
        self._conn = conn
        self._shared = shared
        self._refused = refused
        self._stalled = stalled
        self._spool: Spool | None = None
        self._target: Stream | None = None
        self._watch: Watch | None = None
        self._ready: Callback | None = None  # called once the first part is here
        self._on_data: Callable[[bytes], object] | None = None
        self._done: Callback | None = None  # called once all has been taken in
        self._paused = False
        self._busy = False  # taking in; the reader is being called
        self._turn_due = False
        self._on_fed: Callback | None = None  # the reader's
        self._when_fed: Callback | None = None  # the response's
        self._rest: Rest | None = None
        self.length = head.content_length
        # Where in the connection's input it ends, counted as bytes_in is.
        self._end = self._position() + (self.length or 0) if self.length or head.chunked else 0
        self.is_idle = not self.length and not head.chunked
        self._began = time.monotonic()
        self._continued = not head.expect_continue

    # --- what a reader calls

    def read(self, on_data: Callable[[bytes], object], on_end: Callback) -> None:
        """Call `on_data(piece)` for each piece of it as it comes, then `on_end()`; neither before this has returned."""
        self.is_idle = False
        self._on_data = on_data
        self._done = on_end
        if self._end:
            self.ask()
            self._watch_it()
        self._go_on_later()

    def pause(self) -> None:
        """Call `on_data` no more for now. The client is slowed down once the buffers are full."""
        self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        if self._done is not None and not self._busy and not self._turn_due:
            self._take()

    def collect(self, done: Callback, limit: int | None = None) -> None:
        """Call `done()` once all of it is here; then `contents` is the body.

        :param limit: bytes that it may have (413), where that is less than `max_body_size`.
        """
        if limit is not None and limit < self._shared.body_limits.max_size:
            error = self._limited(msgspec.structs.replace(self._shared.body_limits, max_size=limit))
            if error is not None:
                self._refused(error)
                return
        self.is_idle = False
        self._spool = Spool(self._shared.options.spool_memory, self._shared.spooled)
        self._take_in(done)

    def _limited(self, limits: BodyLimits) -> RequestError | None:
        if isinstance(self._decoder, ChunkedDecoder):
            self._decoder = ChunkedDecoder(limits)
        elif (self.length or 0) > limits.max_size:
            return RequestError(413, f"the body is over {limits.max_size} bytes")
        return None

    def contents(self) -> bytes:
        """All of it, once it has been collected; b"" before."""
        return self._spool.contents() if self._spool is not None and self.is_here else b""

    def prepare(self, ready: Callback) -> None:
        """Call `ready()` once a program may start: of a chunked body all has come, of any other all or the first part.

        So a client that sends slowly, or not at all, takes up nothing that others wait for.
        """
        if self.is_idle:
            ready()
        elif self.is_chunked:
            self.collect(ready)
        elif self._has_enough():
            ready()
        else:
            self._ready = ready
            self.ask()
            self._watch_it()
            self.on_input()

    def source(self) -> int | None:
        """What `Connection.spawn` takes as a program's `stdin`: None, `PIPE`, or a file that has the body in it.

        To be asked once `prepare` has called back. With `PIPE`, give the body to the child's `stdin` by `relay_to`.
        """
        if not self.length:
            return None
        if self._spool is not None and not self._spool.in_memory:
            return self._spool.rewound_descriptor()
        return PIPE

    def relay_to(self, target: Stream, fed: Callback | None = None) -> None:
        """Move it to a stream, which is then closed. It is no error where the stream is closed before.

        :param fed: called when the stream has all of it, or takes no more.
        """
        conn, length = self._conn, self.length or 0
        self.is_idle = False
        self._target = target
        self._on_fed = fed
        target.on_close = self._on_target_closed
        if self._spool is not None:
            target.send(self._spool.contents())
            target.close()
        elif self.is_here:
            target.send(conn.recv(length))
            target.close()
        else:
            self.ask()
            self._watch_it()
            conn.relay_to(target, length, self._relayed)

    def drop(self) -> None:
        """Take no more of it. What its reader has not taken is thrown away."""
        if self.is_idle:
            return
        fed = self._when_fed
        self.stop()
        if fed is not None:
            fed()

    def ask(self) -> None:
        """Say to a client that waits for it that the body is wanted (RFC 9110 section 10.1.1)."""
        if not self._continued:
            self._continued = True
            self._conn.send(CONTINUE)

    @property
    def is_chunked(self) -> bool:
        """Whether its length is known only at its end."""
        return isinstance(self._decoder, ChunkedDecoder)

    @property
    def is_here(self) -> bool:
        """Whether all of it has come."""
        if isinstance(self._decoder, ChunkedDecoder):
            return self._decoder.done
        return self._conn.bytes_in >= self._end

    @property
    def is_being_taken(self) -> bool:
        """Whether it is on its way to its reader."""
        return self._target is not None or self._done is not None

    @property
    def is_awaited(self) -> bool:
        """Whether its reader waits for the client to send more of it."""
        return self.is_being_taken and not self._paused and not self.is_here and not self._conn.relay_waits

    # --- taking it in

    def _take_in(self, done: Callback) -> None:
        if not self._end:
            done()
            return
        self._done = done
        self.ask()
        self._watch_it()
        self.on_input()

    def on_input(self) -> None:
        """Bytes have come, or the end of the stream."""
        if self._rest is not None and not self._rest.is_over:
            self._rest.on_input()
        elif self._done is not None:
            if not self._turn_due and not self._busy:
                self._take()
        elif self._ready is not None:
            if self._has_enough():
                ready, self._ready = self._ready, None
                self._watch_no_more()
                ready()
            elif self._conn.eof:
                self._conn.abort("client closed within a body")

    def _has_enough(self) -> bool:
        """Whether the first part of a body with a Content-Length is here, in the connection's buffer."""
        length = self.length or 0
        here = self._conn.bytes_in - (self._end - length)
        if here >= FAST_FIRST and time.monotonic() - self._began < FAST_TIME:
            return True
        return here >= min(length, max(self._shared.options.spool_memory, LEAST_FIRST), READ_AHEAD)

    def _take(self) -> None:
        self._busy = True
        try:
            self._take_pieces()
        finally:
            self._busy = False

    def _take_pieces(self) -> None:
        conn, decoder = self._conn, self._decoder
        # After the end of the stream no further call comes for what is left.
        while self._done is not None and not self._paused and not decoder.done and (data := self._receive(decoder)):
            try:
                piece = decoder.feed(data, LINES_PER_TURN)
                if self._spool is not None:
                    self._spool.write(piece)
            except (RequestError, OSError) as error:
                self._refused(error)
                return
            surplus = decoder.surplus
            if surplus:
                conn.unread(surplus)
            if self._on_data is not None and piece:
                self._on_data(piece)
            if surplus and not decoder.done:
                self._go_on_later()
                return
        if self._done is None or self._paused:
            return
        if decoder.done:
            self._all_taken()
        elif conn.eof:
            conn.abort("client closed within a body")

    def _receive(self, decoder: LengthDecoder | ChunkedDecoder) -> bytes:
        if isinstance(decoder, LengthDecoder):
            return self._conn.recv(min(decoder.remaining, 65536))
        return self._conn.recv()

    def _go_on_later(self) -> None:
        self._turn_due = True
        self._conn.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._turn_due = False
        if self._done is not None:
            self._take()

    def _all_taken(self) -> None:
        if isinstance(self._decoder, ChunkedDecoder):
            self._end = self._position()
            self.length = self._decoder.received
        self._watch_no_more()
        done, self._done, self._on_data = self._done, None, None
        if done is not None:
            done()

    def _relayed(self, moved: int) -> None:
        target = self._target
        self._watch_no_more()
        if target is None:
            return
        if self._position() < self._end and self._conn.eof:
            # An end of file would tell a program that what it has got is all. It is ended with the connection.
            self._conn.abort("client closed within a body")
        else:
            target.close()

    def _on_target_closed(self, target: Stream, error: BaseException | None) -> None:
        if target is not self._target:
            return
        self._target = None
        for callback in (self._on_fed, self._when_fed):
            if callback is not None:
                callback()

    # --- what the response calls

    def when_fed(self, callback: Callback) -> bool:
        """True: `callback()` comes when the target has it all, or takes no more. False: it is not being relayed."""
        if self._target is None:
            return False
        self._when_fed = callback
        return True

    def stop(self) -> None:
        """Its reader gets no more of it. What has not been taken is in the connection."""
        self._watch_no_more()
        self._ready = self._done = self._on_data = self._on_fed = self._when_fed = None
        target, self._target = self._target, None
        if target is not None:
            target.abort()
        self.forget()

    def forget(self) -> None:
        """Give memory and file back; a program keeps what it has got."""
        if self._spool is not None:
            self._spool.close()

    def is_over(self) -> None:
        """Nothing reads it any more, no program either."""
        self._rest = None
        if self._spool is not None:
            self._spool.forget()

    def await_rest(self, came: Callback) -> bool:
        """Wait for what comes of it after the answer, and throw away what no reader takes.

        :param came: called once all of it is here, or does not come soon.
        :returns: False where all of it is here, or there is no use in waiting; then `came` is not called.
        """
        if not self.rest_may_come():
            return False
        self._rest = rest = Rest(self._conn, self, came)
        rest.look(self._conn.bytes_in)
        return not rest.is_over

    def rest_may_come(self) -> bool:
        """Whether there is a rest that can be waited for."""
        unread = self.unread
        if unread is None or self._done is not None or self.is_here or not self._continued or self._conn.eof:
            return False
        return unread <= REST_LIMIT or self._target is not None

    def throw_away(self) -> None:
        """Take what is here, unless it has a reader."""
        while not self.is_being_taken and (unread := self.unread) and self._conn.recv(unread):
            pass

    @property
    def may_go_on(self) -> bool:
        """Whether the place of the next request is known: all is here, and the client does not wait to be asked for it.

        A client that waits for 100 and gets another answer may send the body or not (RFC 9110 section 10.1.1).
        """
        return self.is_here and self._continued

    @property
    def unread(self) -> int | None:
        """Bytes of it that have not been taken from the connection; None while chunks are still to come."""
        if isinstance(self._decoder, ChunkedDecoder) and not self._decoder.done:
            return None
        return max(self._end - self._position(), 0) if self._end else 0

    def _position(self) -> int:
        """How much of the connection's input has been taken."""
        return self._conn.bytes_in - len(self._conn.peek())

    # --- its timeout

    def _watch_it(self) -> None:
        self._watch = Watch(self._progress, self._stalled)
        self._shared.stalled_bodies.add(self._watch)

    def _watch_no_more(self) -> None:
        if self._watch is not None:
            self._shared.stalled_bodies.remove(self._watch)
            self._watch = None

    def _progress(self) -> int | None:
        """What must change within `body_timeout`. None where it is the reader that is slow."""
        if self._paused or self._conn.relay_waits:
            return None
        if self._target is None and self._on_data is None:
            return self._conn.bytes_in
        # Its reader waits for it: a byte now and then is not enough.
        options = self._shared.options
        return self._conn.bytes_in // max(int(options.min_body_rate * options.body_timeout), 1)
