"""Deadlines of many programs.

A timer for each program would cost more than parsing its request. So all programs of a listener share one: with the
same timeout they come due in the order in which they began.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from poolsrv import Worker

__all__ = ["Deadlines"]


class Deadlines:
    """Calls back whatever is still there when its time is over.

    :param seconds: the time of each; 0 is no limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[Callable[[], object], float] = {}  # monotonic; the earliest first
        self._worker: Worker
        self._timer_is_set = False

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before the first is added."""
        self._worker = worker

    def add(self, callback: Callable[[], object]) -> None:
        """Call it back once, unless it is removed before."""
        if self._seconds:
            self._due[callback] = time.monotonic() + self._seconds
            if not self._timer_is_set:
                self._timer_is_set = True
                self._worker.call_later(self._seconds, self._on_timer)

    def remove(self, callback: Callable[[], object]) -> None:
        """Remove it. Harmless where it is not there."""
        self._due.pop(callback, None)

    def _on_timer(self) -> None:
        self._timer_is_set = False
        while self._due:
            callback, due = next(iter(self._due.items()))
            left = due - time.monotonic()
            if left > 0:
                self._timer_is_set = True
                self._worker.call_later(left, self._on_timer)
                return
            del self._due[callback]
            callback()
