"""Deadlines of many programs.

A timer for each program would cost more than parsing its request. So all of one listener share one: those with the same
timeout come due in the order in which they began.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from poolsrv import Worker

__all__ = ["Deadlines"]


class Deadlines:
    """Calls each back that is still there after so many seconds.

    :param seconds: 0 is for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[Callable[[], object], float] = {}  # monotonic; the earliest first
        self._worker: Worker
        self._set = False

    def open(self, worker: Worker) -> None:
        """In a worker, before the first."""
        self._worker = worker

    def add(self, callback: Callable[[], object]) -> None:
        """Call it back, once."""
        if self._seconds:
            self._due[callback] = time.monotonic() + self._seconds
            if not self._set:
                self._set = True
                self._worker.call_later(self._seconds, self._on_timer)

    def remove(self, callback: Callable[[], object]) -> None:
        """It is no longer to be called. Harmless when it is not there."""
        self._due.pop(callback, None)

    def _on_timer(self) -> None:
        self._set = False
        while self._due:
            callback, due = next(iter(self._due.items()))
            left = due - time.monotonic()
            if left > 0:
                self._set = True
                self._worker.call_later(left, self._on_timer)
                return
            del self._due[callback]
            callback()
