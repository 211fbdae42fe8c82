"""Interpreters that a worker is to start before a script asks for them: one after the other.

Each takes a CPU for a while. The listeners of a worker share the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

from poolsrv import Worker

__all__ = ["StartQueue", "queue_of"]


class StartQueue:
    """What is to be started."""

    def __init__(self) -> None:
        self._due: deque[Callable[[Callable[[], object]], bool]] = deque()
        self._current: object = None  # a mark of the one that starts

    def add(self, start: Callable[[Callable[[], object]], bool]) -> None:
        """Start it once the earlier ones have.

        :param start: called as `start(started)`; it calls `started()` once its own is ready, or has had its time, or
            has ended. It returns False where there is nothing to wait for.
        """
        self._due.append(start)
        if self._current is None:
            self._next()

    def _next(self) -> None:
        self._current = None
        while self._due and self._current is None:
            self._current = mark = object()
            if not self._due.popleft()(partial(self._started, mark)) and self._current is mark:
                self._current = None

    def _started(self, mark: object) -> None:
        if self._current is mark:
            self._next()


_queues: WeakKeyDictionary[Worker, StartQueue] = WeakKeyDictionary()


def queue_of(worker: Worker) -> StartQueue:
    """The queue of a worker."""
    return _queues.setdefault(worker, StartQueue())
