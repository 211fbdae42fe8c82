"""Programs that are about to be started: all that one turn of the worker's loop has brought, one right after the other.

A start fills the processor's caches with other memory: the kernel makes a process, and the process a program. So
answers that are ready do not wait for starts, and what prepares a start is done for all of them before the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from poolsrv import Connection, Worker

__all__ = ["Starts"]


class Starts:
    """The starts of one listener's programs; `open` is for each worker."""

    def __init__(self) -> None:
        self._worker: Worker
        self._due: deque[tuple[Connection, Callable[[], object]]] = deque()
        self._timer_is_set = False

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self._worker = worker

    def add(self, conn: Connection, start: Callable[[], object]) -> None:
        """Call `start()` at the end of this turn. An exception ends the connection."""
        self._due.append((conn, start))
        if not self._timer_is_set:
            self._timer_is_set = True
            self._worker.call_later(0.0, self._start_all)

    def _start_all(self) -> None:
        self._timer_is_set = False
        due, self._due = self._due, deque()
        while due:
            conn, start = due.popleft()
            try:
                start()
            except BaseException:
                for one in due:
                    self.add(*one)
                conn.abort("plugin failed")
                raise
