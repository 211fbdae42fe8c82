"""What the engine counts in a worker; ipc/figures.py says what each of these is."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from ..ipc import figures
from ..ipc.figures import FIGURES
from .metrics import ENGINE, Counter, Gauge, Histogram, Registry

if TYPE_CHECKING:
    from ..core.event_loop import EventLoop

COUNT_EVERY: Final = 5.0  # seconds between two counts of descriptors, where the kernel does not tell their number


class ListenerMetrics:
    """Of one listener.

    :ivar durations: of connections.
    :ivar handed_over: times from the accept until the worker takes the connection.
    :ivar first_byte: times from the accept to the client's first byte.
    """

    def __init__(self, registry: Registry, listener: str) -> None:
        self._registry = registry
        self._listener = listener
        self.durations: Histogram = self._of(figures.DURATION)
        self.handed_over: Histogram = self._of(figures.HANDED_OVER)
        self.first_byte: Histogram = self._of(figures.FIRST_BYTE)
        self._bytes_in: Counter = self._of(figures.BYTES_IN)
        self._bytes_out: Counter = self._of(figures.BYTES_OUT)
        self._failed_handshakes: Counter | None = None

    def settle(self) -> None:
        """Add up the times of connections, of which each is only kept at first."""
        self.durations.settle()
        self.handed_over.settle()
        self.first_byte.settle()

    def hook(self, name: str) -> Histogram:
        """The times that a hook takes."""
        metric: Histogram = self._of(figures.HOOK, name)
        return metric

    def fault(self, plugin: str, hook: str) -> None:
        """Count an exception out of a plugin."""
        self._of(figures.FAULTS, plugin, hook).inc()

    def slow(self, plugin: str, hook: str) -> None:
        """Count a call that took too long."""
        self._of(figures.SLOW_HOOKS, plugin, hook).inc()

    def update(self, bytes_in: int, bytes_out: int, failed_handshakes: int) -> None:
        """Take over what is counted elsewhere."""
        # A plugin may write to what a connection counts: a counter does not go back for that.
        self._bytes_in.value = max(bytes_in, self._bytes_in.value)
        self._bytes_out.value = max(bytes_out, self._bytes_out.value)
        if failed_handshakes:
            self._failed_handshakes = self._failed_handshakes or self._of(figures.FAILED_HANDSHAKES)
            self._failed_handshakes.value = failed_handshakes

    def _of(self, name: str, *values: str) -> Any:
        return _define(self._registry, name, self._listener, *values)


class EngineMetrics:
    """Of the worker.

    :ivar longest: seconds of the loop's longest iteration since the last report.
    """

    def __init__(self, registry: Registry) -> None:
        self.longest = 0.0
        self._events: Counter = _define(registry, figures.EVENTS)
        self._lag: Gauge = _define(registry, figures.LAG)
        self._undelivered: Counter = _define(registry, figures.UNDELIVERED)
        self._descriptors: Gauge = _define(registry, figures.DESCRIPTORS)
        self._descriptor_limit: Gauge = _define(registry, figures.DESCRIPTOR_LIMIT)
        self._counted_at = float("-inf")

    def update(self, loop: EventLoop, undelivered: int) -> None:
        """Take over what is counted elsewhere, before a report."""
        self._events.value = loop.events
        self._undelivered.value = undelivered
        self._lag.value, self.longest = round(self.longest, 6), 0.0
        loop.long_turn = 0.0
        self._count_descriptors(loop)

    def turn_was_long(self, loop: EventLoop, took: float, slow: float) -> None:
        """Note the longest iteration, and have the loop tell of longer ones only, and of slow ones."""
        self.longest = max(self.longest, took)
        loop.long_turn = min(self.longest, slow)

    def _count_descriptors(self, loop: EventLoop) -> None:
        try:
            count = os.stat("/proc/self/fd").st_size  # since Linux 6.2
            if not count and loop.now - self._counted_at >= COUNT_EVERY:
                self._counted_at = loop.now
                count = len(os.listdir("/proc/self/fd")) - 1  # without the one that lists them
        except OSError:
            return  # none is left to look with
        if count:
            self._descriptors.value = count
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._descriptor_limit.value = limit if limit != resource.RLIM_INFINITY else 0


class WorkerMetrics:
    """All that a worker has from the start. They are made before the fork: so no worker has to make and report them.

    :param listeners: the names of the pool's listeners.
    :ivar definitions: what they are, which the dispatcher knows without a report.
    """

    def __init__(self, listeners: Iterable[str]) -> None:
        self.registry = Registry()
        self.engine = EngineMetrics(self.registry)
        self.of_listener = {name: ListenerMetrics(self.registry, name) for name in listeners}
        self.definitions = self.registry.describe()


def _define(registry: Registry, name: str, *values: str) -> Any:
    figure = FIGURES[name]
    metric = registry.define(ENGINE, figure.kind, name, figure.help, figure.labels)
    return metric.labels(*values) if figure.labels else metric
