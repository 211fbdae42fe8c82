"""What a connection waits for: its first byte, holds, timers, calls that come soon, and calls that block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..core.event_loop import READ
from ..core.native import mypyc_attr
from ..net.descriptor import CLOSED, CONNECTING, OPEN
from ..net.stream import Stream
from ..net.transport import RAW

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..core.event_loop import Timer
    from .host import Host


P = ParamSpec("P")
R = TypeVar("R")


@mypyc_attr(allow_interpreted_subclasses=True)
class Waiting(Stream):
    """The part of ``Connection`` that keeps it open, and calls back later."""

    __slots__ = ("_accepted_at", "_holds", "_own_holds", "_timers")

    _host: Host[Any]

    # Connection sets them: a constructor here would cost every new connection another call.
    _holds: int  # plugin's hold() calls, calls that come soon, and blocking calls
    _own_holds: int  # of these, the plugin's
    _timers: set[Timer] | None
    _accepted_at: float  # in seconds of the loop's clock

    # --- the first byte

    def _awaits_first_byte(self) -> bool:
        """Whether nothing has come for a plugin yet, although it reads. A TLS handshake does not count."""
        return self.bytes_in == 0 and (self._state == CONNECTING or (self._state == OPEN and self._reading))

    def _read_first(self) -> None:
        """Read for the first time, and have the loop watch. Most clients speak first, and it is here by now: that saves
        an iteration of the loop."""
        if self._transport is RAW and not self._paused and self._on_readable is not None and self._relay_in is None:
            # Before it is watched: the kernel does less for a descriptor that is registered with nothing to read.
            self._reading = True
            self._on_event(READ)
        else:
            self._start()
            if not self._reading:
                return
            self._on_event(READ)
            if self._transport.ready:
                self._look_again()
        if self.bytes_in:
            host = self._host
            host.first_byte_times.append(self._loop.now - self._accepted_at)
            if self._interest < 0 and self._state == OPEN:
                host.newcomers.add(self)
        elif self._state == OPEN:
            if self._interest < 0:
                self._start()
            self._loop.set_callback(self._fd, self._on_first_event)

    def _end_or_be_watched(self) -> bool:
        """At the end of its first iteration: whether its end has come. If not, it is watched from now on."""
        if self._interest < 0 and self._state == OPEN:
            if self._reading:
                self._on_event(READ)
            if self._interest < 0 and self._state == OPEN:
                self._start()
        return self._state == CLOSED

    def _on_first_event(self, mask: int) -> None:
        """In the place of ``_callback()`` until the client's first byte has come."""
        callback = self._callback()
        self._loop.set_callback(self._fd, callback)
        callback(mask)
        if self.bytes_in:
            self._host.first_byte_times.append(self._loop.now - self._accepted_at)
        elif self._interest >= 0 and self._state == OPEN:
            self._loop.set_callback(self._fd, self._on_first_event)

    def _give_up_on(self, reason: str) -> None:
        """The client has not sent, or not taken, anything in time."""
        if self._out is not None:
            self.abort(reason)
        else:
            self.close(reason)

    def _always_lingers(self) -> bool:
        return True

    # --- staying open

    def hold(self) -> None:
        """Keep the connection open although the peer has finished sending, until ``release`` is called as often."""
        self._own_holds += 1
        self._holds += 1

    def release(self) -> None:
        """Take a ``hold`` back.

        :raises RuntimeError: there is none.
        """
        if self._own_holds == 0:
            raise RuntimeError("release() without hold()")
        self._own_holds -= 1
        self._holds -= 1
        self._loop.at_end_of_turn(self._close_if_done)

    # --- time

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback()`` in ``seconds``, unless the connection is gone by then. The timer has ``cancel()``."""
        timer = self._loop.call_later(seconds, lambda: self._timer_due(timer, callback))
        if self._state == CLOSED:
            timer.cancel()
            return timer
        if self._timers is None:
            self._timers = set()
        elif len(self._timers) >= 16 and len(self._timers).bit_count() == 1:
            # Those that were cancelled are still in it; looked for at 16, 32, 64, it costs O(1) for each timer.
            self._timers = {timer for timer in self._timers if timer.callback is not None}
        self._timers.add(timer)
        return timer

    def _timer_due(self, timer: Timer, callback: Callable[[], object]) -> None:
        if self._timers is not None:
            self._timers.discard(timer)
        self._guarded("a timer", callback)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` once all others have had their turn, unless the connection is gone by then. Until it has
        returned it holds the connection: for a plugin that has more to do than fits into one call."""
        if self._state == CLOSED:
            return
        self._holds += 1
        self._loop.call_later(0.0, partial(self._soon, callback))

    def _soon(self, callback: Callable[[], object]) -> None:
        if self._state != CLOSED:
            self._guarded("call_soon", callback)
        self._holds -= 1
        self._close_if_done()

    def run_blocking(
        self, function: Callable[P, R], *args: Any, done: Callable[[Future[R]], object] | None = None
    ) -> None:
        """Call ``function(*args)`` in the worker's small thread pool; it must not touch the connection.

        :param done: called in the loop as ``done(future)``; dropped if the connection is gone by then. If no thread
            could be started (too many processes), the future has an OSError (EAGAIN).
        """
        self._holds += 1
        self._host.threads.submit(partial(function, *args), partial(self._blocking_done, done))

    def _blocking_done(self, done: Callable[[Future[Any]], object] | None, future: Future[Any]) -> None:
        if self._state != CLOSED and done is not None:
            self._guarded("done", partial(done, future))
        elif done is None and future.exception() is not None:
            self._fault("run_blocking", future.exception())  # type: ignore[arg-type]
        self._holds -= 1
        self._close_if_done()

    def _on_ended(self) -> None:
        if self._timers is not None:
            for timer in self._timers:
                timer.cancel()
            self._timers = None
        Stream._on_ended(self)
