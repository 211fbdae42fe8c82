"""Measures how long hooks take, on a sample: reading a clock around each call would slow down every event.

Some 20 times a second, in the next iteration that has events, the hooks that are called are timed: all hooks of new
connections, and ``on_readable`` of the connections that have events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..core.event_loop import EventLoop
from .connection import Connection

if TYPE_CHECKING:
    from .hooks import Caller
    from .metrics import Histogram
    from .service import Service

SAMPLE_EVERY: Final = 0.05  # seconds
MOST_TIMED: Final = 16  # connections in one iteration


class HookSampler:
    """Samples the hooks of a worker's listeners."""

    def __init__(self, loop: EventLoop, services: Sequence[Service]) -> None:
        self._loop = loop
        self._services = services
        self._timed: dict[str, _TimedHooks] = {}  # made for the first sample

    def begin(self) -> None:
        """Begin to sample."""
        self._loop.before_next_turn(self._sample)

    def _sample(self, events: Sequence[tuple[int, int]]) -> None:
        if not events:
            self.begin()  # only timers are due
            return
        if not self._timed:
            self._timed = {service.name: _TimedHooks(service) for service in self._services}
        for timed in self._timed.values():
            timed.install()
        for fd, _ in events[:MOST_TIMED]:
            connection = getattr(self._loop.callback_of(fd), "__self__", None)
            if isinstance(connection, Connection) and connection.listener in self._timed:
                self._timed[connection.listener].time(connection)
        self._loop.at_end_of_turn(self._over)

    def _over(self) -> None:
        for timed in self._timed.values():
            timed.end()
        self._loop.call_later(SAMPLE_EVERY, self.begin)


class _TimedHooks:
    """The hooks of one listener with a clock around them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._plain = service.on_connection_init, service.on_readable, service.on_connection_close
        init, readable, close = self._plain
        metrics = service.metrics
        self._timed = (
            None if init is None else _timed(init, metrics.hook("on_connection_init")),
            _timed_once(readable, metrics.hook("on_readable")),
            None if close is None else _timed(close, metrics.hook("on_connection_close")),
        )

    def install(self) -> None:
        service = self._service
        service.on_connection_init, service.on_readable, service.on_connection_close = self._timed

    def end(self) -> None:
        service = self._service
        service.metrics.settle()  # so that only those of a moment are kept
        service.on_connection_init, service.on_readable, service.on_connection_close = self._plain

    def time(self, connection: Connection) -> None:
        if connection._on_readable is self._plain[1]:
            connection._on_readable = self._timed[1]


def _timed(function: Caller, histogram: Histogram) -> Caller:
    def timed(*arguments: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*arguments)
        finally:
            histogram.observe(time.monotonic() - began)

    return timed


def _timed_once(function: Caller, histogram: Histogram) -> Callable[[Connection], Any]:
    """The same for the next call of a connection alone."""

    def timed(connection: Connection) -> Any:
        connection._on_readable = function
        began = time.monotonic()
        try:
            return function(connection)
        finally:
            histogram.observe(time.monotonic() - began)

    return timed
