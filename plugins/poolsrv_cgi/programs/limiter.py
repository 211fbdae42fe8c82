"""How many programs may run at a time, over all workers, and the bounded queue in front of that.

Theory. Permits are the count of an `eventfd` with EFD_SEMAPHORE (eventfd(2)): a read acquires one, a write releases
one, both are atomic between processes, and the descriptor is readable while there are permits. It is made before the
fork, so that all workers share it and nothing has to go through the dispatcher.

A worker that is killed can't release what it holds. So each worker keeps the number of its permits in a cell of shared
memory (`SharedCells`), and the dispatcher, once it has reaped the worker, releases that many. The cell is changed
before a permit is acquired and after one is released, so a worker that is killed in between leaves one permit too many,
never one too few.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from poolsrv_http import SharedCells

from poolsrv import Gauge, Handle, Timer, Worker

__all__ = ["ProgramLimiter", "SharedSemaphore", "Waiter"]

GRANTS_PER_EVENT = 8  # permits granted at a time: each starts a program, and other events wait meanwhile


class SharedSemaphore:
    """A semaphore that the workers of a pool share.

    :param permits: how many there are.
    """

    def __init__(self, permits: int) -> None:
        self._event = -1
        self._cells = SharedCells()
        self._event = os.eventfd(permits, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        if self._event >= 0:
            os.close(self._event)

    def fileno(self) -> int:
        """The descriptor that is readable while there are permits."""
        return self._event

    def open(self) -> None:
        """Prepare a worker, before its first connection."""
        self._cells.open()

    def acquire(self) -> bool:
        """Acquire a permit without waiting; False where there is none."""
        self._cells.add(1)
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            self._cells.add(-1)
            return False
        return True

    def release(self) -> None:
        """Release a permit."""
        os.eventfd_write(self._event, 1)
        self._cells.add(-1)

    def worker_ended(self, pid: int) -> None:
        """Release, in the dispatcher, what a worker held that has been reaped."""
        held = self._cells.forget(pid)
        if held > 0:
            os.eventfd_write(self._event, held)


class Waiter:
    """An entry in the queue. Exactly one of the two callbacks is called, unless the waiter is cancelled.

    :param granted: called with a permit acquired for it.
    :param refused: called when it has waited for too long.
    """

    __slots__ = ("_since", "granted", "refused", "timer")

    def __init__(self, granted: Callable[[], object], refused: Callable[[], object]) -> None:
        self.granted = granted
        self.refused = refused
        self.timer: Timer | None = None
        self._since = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._since


class ProgramLimiter:
    """Decides whether a program may start now, waits for a permit, or is refused.

    :param limit: programs at a time, over the pool; 0 is no limit.
    :param queue_size: how many may wait, over the pool.
    :param queue_timeout: seconds that each may wait; 0 is no limit.
    """

    def __init__(self, limit: int, queue_size: int, queue_timeout: float) -> None:
        self._permits = SharedSemaphore(limit) if limit else None
        self._queue = SharedSemaphore(queue_size) if limit and queue_size else None
        self._timeout = queue_timeout
        self._waiting: dict[Waiter, None] = {}  # in the order of arrival
        self._worker: Worker | None = None
        self._watch: Handle | None = None
        self._queued: Gauge | None = None

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self._worker = worker
        self._queued = worker.metrics.gauge("cgi_programs_waiting", "Requests that wait for max_programs")
        for semaphore in (self._permits, self._queue):
            if semaphore is not None:
                semaphore.open()

    def worker_ended(self, pid: int) -> None:
        """Release, in the dispatcher, what a worker held that has been reaped."""
        for semaphore in (self._permits, self._queue):
            if semaphore is not None:
                semaphore.worker_ended(pid)

    def acquire(self) -> bool:
        """Acquire a permit now; False where the caller has to wait, behind those that wait already."""
        return self._permits is None or (not self._waiting and self._permits.acquire())

    def release(self) -> None:
        """Release the permit of a program that has ended, or has not started."""
        if self._permits is not None:
            self._permits.release()

    def wait(self, waiter: Waiter) -> bool:
        """Queue for a permit; False where the queue is full."""
        assert self._worker is not None
        assert self._permits is not None
        if self._queue is None or not self._queue.acquire():
            return False
        if self._timeout:
            waiter.timer = self._worker.call_later(self._timeout, lambda: self._timed_out(waiter))
        self._waiting[waiter] = None
        self._count()
        if self._watch is None:
            self._watch = self._worker.add_reader(self._permits.fileno(), self._grant)
        return True

    def cancel(self, waiter: Waiter) -> None:
        """Take a waiter out of the queue. Harmless where it no longer waits."""
        if waiter in self._waiting:
            self._leave(waiter)

    def _grant(self) -> None:
        assert self._permits is not None
        # The descriptor stays readable while permits are left, so the rest follows in the next iteration.
        for _ in range(GRANTS_PER_EVENT):
            if not self._waiting or not self._permits.acquire():
                return
            waiter = next(iter(self._waiting))
            self._leave(waiter)
            waiter.granted()

    def _timed_out(self, waiter: Waiter) -> None:
        if waiter in self._waiting:
            self._leave(waiter)
            waiter.refused()

    def _count(self) -> None:
        if self._queued is not None:
            self._queued.set(len(self._waiting))

    def _leave(self, waiter: Waiter) -> None:
        del self._waiting[waiter]
        self._count()
        if waiter.timer is not None:
            waiter.timer.cancel()
        if self._queue is not None:
            self._queue.release()
        if not self._waiting and self._watch is not None:
            self._watch.cancel()
            self._watch = None
