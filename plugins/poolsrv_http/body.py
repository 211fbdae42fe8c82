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

from collections.abc import Callable

import msgspec

from poolsrv import PIPE, Connection, Stream

from .arrival import BodyArrival
from .decoders import BodyLimits, ChunkedDecoder, body_decoder
from .feed import Feed
from .request_head import RequestError, RequestHead
from .rest import REST_LIMIT, Rest
from .shared import Shared
from .spool import Spool
from .stall import Watch

__all__ = ["RequestBody"]

LINES_PER_TURN = 256  # of a chunked body, two to a chunk: a chunk may be of one byte, and others wait for their turn

Callback = Callable[[], object]


class RequestBody(BodyArrival):
    """The body of one request, empty where it has none.

    A body that is too large, malformed or too slow is refused by the library; then its reader is not called again, and
    the response's `on_cancel` is.

    :ivar is_idle: the request has no body, and no reader has asked for it: nothing comes, and nothing is to be stopped.
    """

    __slots__ = (
        "_busy",
        "_done",
        "_feed",
        "_on_data",
        "_paused",
        "_ready",
        "_refused",
        "_rest",
        "_shared",
        "_spool",
        "_stalled",
        "_turn_due",
        "_wanted",
        "_watch",
        "is_idle",
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
        BodyArrival.__init__(self, conn, head, body_decoder(head, shared.body_limits))
        self._shared = shared
        self._refused = refused
        self._stalled = stalled
        self._spool: Spool | None = None
        self._feed: Feed | None = None
        self._watch: Watch | None = None
        self._ready: Callback | None = None  # called once the first part is here
        self._on_data: Callable[[bytes], object] | None = None
        self._done: Callback | None = None  # called once all has been taken in
        self._paused = False
        self._busy = False  # taking in; the reader is being called
        self._turn_due = False
        self._wanted = 0  # bytes that are to be here at first
        self._rest: Rest | None = None
        self.is_idle = not self.length and not head.chunked

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

    def prepare(self, ready: Callback, wanted: int = 0) -> None:
        """Call `ready()` once a program may start: of a chunked body all has come, of any other all or the first part.

        So a client that sends slowly, or not at all, takes up nothing that others wait for.

        :param wanted: bytes that `first` is to have then, at most 262144.
        """
        self._wanted = wanted
        if self.is_idle:
            ready()
        elif self.is_chunked:
            self.collect(ready)
        elif self._has_first_part(self._shared.options.spool_memory, wanted):
            ready()
        else:
            self._ready = ready
            self.ask()
            self._watch_it()
            self.on_input()

    def first(self, limit: int) -> bytes:
        """Its first bytes, as far as they are here; they are not taken. To be asked once `prepare` has called back.

        :param limit: how many at most.
        """
        if self._spool is not None:
            return self._spool.first(limit)
        return self._conn.peek()[: min(limit, self.length or 0)]

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
        length = self.length or 0
        self.is_idle = False
        self._feed = feed = Feed(target, fed)
        if self._spool is not None:
            feed.close(self._spool.contents())
        elif self.is_here:
            feed.close(self._conn.recv(length))
        else:
            self.ask()
            self._watch_it()
            self._conn.relay_to(target, length, self._relayed)

    def drop(self) -> None:
        """Take no more of it. What its reader has not taken is thrown away."""
        if self.is_idle:
            return
        on_over = self._feed.on_over if self._feed is not None else None
        self.stop()
        if on_over is not None:
            on_over()

    @property
    def is_being_taken(self) -> bool:
        """Whether it is on its way to its reader."""
        return self._done is not None or self._is_fed_to_a_stream

    @property
    def _is_fed_to_a_stream(self) -> bool:
        return self._feed is not None and not self._feed.is_over

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
            if self._has_first_part(self._shared.options.spool_memory, self._wanted):
                ready, self._ready = self._ready, None
                self._watch_no_more()
                ready()
            elif self._conn.eof:
                self._conn.abort("client closed within a body")

    def _take(self) -> None:
        self._busy = True
        try:
            self._take_pieces()
        finally:
            self._busy = False

    def _take_pieces(self) -> None:
        conn, decoder = self._conn, self._decoder
        # After the end of the stream no further call comes for what is left.
        while self._done is not None and not self._paused and not decoder.done and (data := self._receive()):
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

    def _go_on_later(self) -> None:
        self._turn_due = True
        self._conn.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._turn_due = False
        if self._done is not None:
            self._take()

    def _all_taken(self) -> None:
        if isinstance(self._decoder, ChunkedDecoder):
            self._has_ended(self._decoder.received)
        self._watch_no_more()
        done, self._done, self._on_data = self._done, None, None
        if done is not None:
            done()

    def _relayed(self, moved: int) -> None:
        self._watch_no_more()
        if self._feed is None or self._feed.is_over:
            return
        if self._position() < self._end and self._conn.eof:
            # An end of file would tell a program that what it has got is all. It is ended with the connection.
            self._conn.abort("client closed within a body")
        else:
            self._feed.close()

    # --- what the response calls

    def when_fed(self, callback: Callback) -> bool:
        """True: `callback()` comes when the target has it all, or takes no more. False: it is not being relayed."""
        if self._feed is None or self._feed.is_over:
            return False
        self._feed.on_over = callback
        return True

    def stop(self) -> None:
        """Its reader gets no more of it. What has not been taken is in the connection."""
        self._watch_no_more()
        self._ready = self._done = self._on_data = None
        if self._feed is not None:
            self._feed.abort()
            self._feed = None
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
        return unread <= REST_LIMIT or self._is_fed_to_a_stream

    def throw_away(self) -> None:
        """Take what is here, unless it has a reader."""
        while not self.is_being_taken and (unread := self.unread) and self._conn.recv(unread):
            pass

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
        if self._on_data is None and not self._is_fed_to_a_stream:
            return self._conn.bytes_in
        # Its reader waits for it: a byte now and then is not enough.
        options = self._shared.options
        return self._conn.bytes_in // max(int(options.min_body_rate * options.body_timeout), 1)
