"""Watches how long the iterations of a worker's loop take, and its hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .hook_sampler import HookSampler
from .slow_watch import SlowWatch

if TYPE_CHECKING:
    from ..core.event_loop import EventLoop
    from .engine_metrics import EngineMetrics
    from .service import Service


class TimeWatch:
    """For one worker.

    :param listeners: those that it serves, from ``begin`` on.
    :param metrics: where they are counted.
    :param slow_hook: seconds from which on the log says that a hook is slow; 0: it does not.
    """

    def __init__(self, loop: EventLoop, listeners: Sequence[Service], metrics: EngineMetrics, slow_hook: float) -> None:
        self._loop = loop
        self._metrics = metrics
        self._sampler = HookSampler(loop, listeners)
        self._slow_hook = slow_hook or float("inf")
        self._slow_watch = SlowWatch(loop, listeners, slow_hook) if slow_hook else None

    def begin(self) -> None:
        """Begin to watch."""
        self._sampler.begin()
        self._loop.on_long_turn = self._turn_was_long
        if self._slow_watch is not None:
            self._slow_watch.begin()

    def _turn_was_long(self, took: float) -> None:
        self._metrics.turn_was_long(self._loop, took, self._slow_hook)
        if self._slow_watch is not None and took >= self._slow_hook:
            self._slow_watch.turn_was_long(took)
