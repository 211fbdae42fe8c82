"""How many programs may run at a time, over all workers, and the bounded queue before that.

Theory. A place is one count of an `eventfd` with EFD_SEMAPHORE (eventfd(2)): to take it is a read, to give it back a
write, both atomic between processes, and the descriptor is readable while there are places. It is made before the
fork, so that all workers share it; no trip to the dispatcher is needed.

A worker that is killed can't give back what it holds. So each keeps the number of its places in a cell of shared
memory (`cells`), and the dispatcher, once it has reaped the worker, gives back that many. The cell is changed before a
place is taken and after it is given back, so a worker that is killed in between leaves one place too many, never one
too few.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from poolsrv_http import SharedCells

from poolsrv import Handle, Timer, Worker

__all__ = ["ProgramLimiter", "Waiter"]

GRANTS_PER_EVENT = 8  # places that are handed on at a time: each starts a program, and others wait for their events


class SharedSemaphore:
    """A number of places that the workers of a pool share.

    :param places: how many there are.
    """

    def __init__(self, places: int) -> None:
        self._event = os.eventfd(places, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._cells = SharedCells()

    def __del__(self) -> None:
        os.close(self._event)

    def fileno(self) -> int:
        """The descriptor that is readable while there are places."""
        return self._event

    def open(self) -> None:
        """In a worker, before its first connection."""
        self._cells.open()

    def take(self) -> bool:
        """Take a place; False where there is none."""
        self._cells.add(1)
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            self._cells.add(-1)
            return False
        return True

    def give_back(self) -> None:
        """Give a place back."""
        os.eventfd_write(self._event, 1)
        self._cells.add(-1)

    def worker_ended(self, pid: int) -> None:
        """In the dispatcher: give back what a worker that has been reaped held."""
        held = self._cells.forget(pid)
        if held > 0:
            os.eventfd_write(self._event, held)


class Waiter:
    """Somebody in the queue; exactly one of the two is called, unless the waiter is cancelled.

    :param granted: called when a place has been taken for it.
    :param refused: called when it has waited for too long.
    """

    __slots__ = ("granted", "refused", "timer")

    def __init__(self, granted: Callable[[], object], refused: Callable[[], object]) -> None:
        self.granted = granted
        self.refused = refused
        self.timer: Timer | None = None


class ProgramLimiter:
    """Who may start a program now, who waits, who is refused.

    :param limit: programs at a time, over the pool; 0 is no limit.
    :param queue_size: how many may wait, over the pool.
    :param queue_timeout: seconds that one may wait; 0 is for ever.
    """

    def __init__(self, limit: int, queue_size: int, queue_timeout: float) -> None:
        self._places = SharedSemaphore(limit) if limit else None
        self._queue = SharedSemaphore(queue_size) if limit and queue_size else None
        self._timeout = queue_timeout
        self._waiting: dict[Waiter, None] = {}  # in the order of their coming
        self._worker: Worker | None = None
        self._watch: Handle | None = None

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection."""
        self._worker = worker
        for count in (self._places, self._queue):
            if count is not None:
                count.open()

    def worker_ended(self, pid: int) -> None:
        """In the dispatcher, when a worker has been reaped."""
        for count in (self._places, self._queue):
            if count is not None:
                count.worker_ended(pid)

    def take(self) -> bool:
        """Take a place now; False where one has to wait."""
        return self._places is None or (not self._waiting and self._places.take())

    def give_back(self) -> None:
        """A program has ended."""
        if self._places is not None:
            self._places.give_back()

    def wait(self, waiter: Waiter) -> bool:
        """Queue for a place; False where the queue is full."""
        assert self._worker is not None
        assert self._places is not None
        if self._queue is None or not self._queue.take():
            return False
        if self._timeout:
            waiter.timer = self._worker.call_later(self._timeout, lambda: self._timed_out(waiter))
        self._waiting[waiter] = None
        if self._watch is None:
            self._watch = self._worker.add_reader(self._places.fileno(), self._on_places)
        return True

    def cancel(self, waiter: Waiter) -> None:
        """The waiter has gone away; harmless where it no longer waits."""
        if waiter in self._waiting:
            self._leave(waiter)

    def _on_places(self) -> None:
        assert self._places is not None
        # What is left over is told again at once: the descriptor stays readable.
        for _ in range(GRANTS_PER_EVENT):
            if not self._waiting or not self._places.take():
                return
            waiter = next(iter(self._waiting))
            self._leave(waiter)
            waiter.granted()

    def _timed_out(self, waiter: Waiter) -> None:
        if waiter in self._waiting:
            self._leave(waiter)
            waiter.refused()

    def _leave(self, waiter: Waiter) -> None:
        del self._waiting[waiter]
        if waiter.timer is not None:
            waiter.timer.cancel()
        if self._queue is not None:
            self._queue.give_back()
        if not self._waiting and self._watch is not None:
            self._watch.cancel()
            self._watch = None
